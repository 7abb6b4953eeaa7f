"""The policy on signatures, and the state of a bundle's signature."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from ...runtime.bundle.bundle import Bundle
from ...runtime.errors import OrtkitError
from ...runtime.trust.names import SIGNATURE
from ...runtime.trust.policy import Policy, read_signature
from .finding import Finding, error, failed, note, ok

_PACKAGE_EXIT = 1


@dataclass(frozen=True)
class Trust:
    """The policy of this machine, as `runtime/trust/policy.py` reads it."""

    path: str | None = None
    """The policy's file; None where there is none."""
    keys: int = 0
    """Number of keys and certificates that are trusted."""
    required: bool = False
    """Whether bundles must be signed by one of them."""
    problem: OrtkitError | None = None
    """Why the policy cannot be used."""
    verifiers: tuple[str, ...] = ()
    """What can verify signatures here: the package `cryptography`, the command `openssl`."""
    policy: Policy | None = None
    """The Policy itself; None where it cannot be used."""


@dataclass(frozen=True)
class SignatureState:
    """A bundle's signature."""

    signed: bool
    signer: str | None = None
    """Who signed it, by the trusted keys; None where that was not asked, or is not known."""
    problem: OrtkitError | None = None
    """Why the signature is not trusted, or the policy refuses the bundle."""


def look_at_trust() -> Trust:
    """Read the policy; raises nothing for one that cannot be used."""
    found = {"cryptography": find_spec("cryptography"), "openssl": shutil.which("openssl")}
    verifiers = tuple(name for name, where in found.items() if where is not None)
    try:
        policy = Policy.current()
    except OrtkitError as problem:
        return Trust(problem=problem, verifiers=verifiers)
    path = None if policy.path is None else str(policy.path)
    return Trust(path, len(policy.trusted), policy.require_signature, None, verifiers, policy)


def look_at_signature(trust: Trust, bundle: Bundle, files: Mapping[str, str]) -> SignatureState:
    """Verify a bundle's signature by the policy, whose record of releases is read and not changed.

    `files` are all files of the bundle with their sha256, the manifest too.
    """
    policy = trust.policy
    signed = False
    try:
        signed = read_signature(bundle.path / SIGNATURE) is not None
        if policy is None or not (policy.require_signature or (signed and policy.trusted)):
            return SignatureState(signed)
        signer = str(policy.verify(bundle.path, files))
        policy.check_ownership(bundle.path, (*files, SIGNATURE))
        policy.releases.check(bundle.manifest.counter, bundle.manifest.release)
    except OrtkitError as problem:
        return SignatureState(signed, None, problem)
    return SignatureState(signed, signer)


def check_trust(trust: Trust) -> Iterator[Finding]:
    """The policy on signatures, and what verifies them."""
    facts: dict[str, Any] = {
        "path": trust.path,
        "keys": trust.keys,
        "required": trust.required,
        "verifiers": list(trust.verifiers),
    }
    if trust.problem is not None:
        yield failed(
            "policy",
            trust.problem,
            "no bundle is opened while the policy cannot be used",
            "mend it: `docs/signing.md`",
            **facts,
        )
    elif trust.required and not trust.verifiers:
        yield error(
            "policy",
            f"the policy `{trust.path}` requires signatures, and nothing here verifies them",
            "no bundle is opened",
            "install the package `cryptography` (`pip install 'ortkit[sign]'`), or the command `openssl`",
            _PACKAGE_EXIT,
            **facts,
        )
    elif trust.required:
        keys = f"{trust.keys} key or certificate" if trust.keys == 1 else f"{trust.keys} keys and certificates"
        yield ok("policy", f"`{trust.path}` requires a signature by one of {keys}", **facts)
    else:
        yield note(
            "policy",
            "bundles need no signature here",
            "a graph is a program, and hashes alone do not show who made a bundle",
            "require signatures: put `trusted_keys` and `require_signature = true` in `/etc/ortkit/policy.toml`",
            **facts,
        )


def check_signature(trust: Trust, state: SignatureState) -> Iterator[Finding]:
    """A bundle's signature."""
    facts: dict[str, Any] = {"signed": state.signed, "signer": state.signer, "required": trust.required}
    if state.problem is not None and trust.required:
        yield failed("bundle-signature", state.problem, "the policy refuses the bundle", **facts)
    elif state.problem is not None:
        yield note(
            "bundle-signature",
            state.problem.message,
            "the policy does not require a signature, so that the bundle is used all the same",
            state.problem.hint,
            **facts,
        )
    elif state.signer is not None:
        yield ok("bundle-signature", f"signed by {state.signer}", **facts)
    elif state.signed:
        yield note(
            "bundle-signature",
            "the bundle is signed, and no key is trusted here",
            "its signature is not verified",
            "name the key as `trusted_keys` in `/etc/ortkit/policy.toml`",
            **facts,
        )
    else:
        yield ok("bundle-signature", "not signed; the policy requires no signature", **facts)
