# ruff: noqa: E501 - texts as they are printed
from __future__ import annotations

import pytest

from ortkit.runtime.errors import BundleError, InputError
from ortkit.toolkit.doctor.trust import SignatureState, Trust, check_signature, check_trust
from tests.toolkit.doctor.hosts import text_of

POLICY = "/etc/ortkit/policy.toml"
REQUIRED = Trust(POLICY, 2, required=True, verifiers=("openssl",))


@pytest.mark.parametrize(
    ("trust", "expected"),
    [
        (REQUIRED, f"ok policy: `{POLICY}` requires a signature by one of 2 keys and certificates"),
        (
            Trust(POLICY, 1, required=True, verifiers=("cryptography",)),
            f"ok policy: `{POLICY}` requires a signature by one of 1 key or certificate",
        ),
        (
            Trust(),
            (
                "note policy: bundles need no signature here\n"
                "why: a graph is a program, and hashes alone do not show who made a bundle\n"
                "do: require signatures: put `trusted_keys` and `require_signature = true` in `/etc/ortkit/policy.toml`"
            ),
        ),
        (
            Trust(POLICY, 1, required=True),
            (
                f"error policy: the policy `{POLICY}` requires signatures, and nothing here verifies them\n"
                "why: no bundle is opened\n"
                "do: install the package `cryptography` (`pip install 'ortkit[sign]'`), or the command `openssl`\nexit: 1"
            ),
        ),
        (
            Trust(problem=InputError("the policy `/p` is not valid TOML")),
            (
                "error policy: the policy `/p` is not valid TOML\n"
                "why: no bundle is opened while the policy cannot be used\n"
                "do: mend it: `docs/signing.md`\nexit: 2"
            ),
        ),
        (
            Trust(problem=InputError("the policy is not used", hint="`chmod go-w /p`, as its owner")),
            (
                "error policy: the policy is not used\n"
                "why: no bundle is opened while the policy cannot be used\ndo: `chmod go-w /p`, as its owner\nexit: 2"
            ),
        ),
    ],
)
def test_policy(trust: Trust, expected: str) -> None:
    assert [text_of(found) for found in check_trust(trust)] == [expected]


REFUSED = BundleError("`b` is not signed, and the policy requires a signature", hint="sign it where it is made")


@pytest.mark.parametrize(
    ("trust", "state", "expected"),
    [
        (REQUIRED, SignatureState(True, "key `a.pem`"), "ok bundle-signature: signed by key `a.pem`"),
        (
            REQUIRED,
            SignatureState(False, None, REFUSED),
            (
                "error bundle-signature: `b` is not signed, and the policy requires a signature\n"
                "why: the policy refuses the bundle\ndo: sign it where it is made\nexit: 7"
            ),
        ),
        (
            Trust(POLICY, 1),
            SignatureState(True, None, BundleError("signed by another key", hint="trust it")),
            (
                "note bundle-signature: signed by another key\n"
                "why: the policy does not require a signature, so that the bundle is used all the same\ndo: trust it"
            ),
        ),
        (
            Trust(),
            SignatureState(True),
            (
                "note bundle-signature: the bundle is signed, and no key is trusted here\n"
                "why: its signature is not verified\ndo: name the key as `trusted_keys` in `/etc/ortkit/policy.toml`"
            ),
        ),
        (Trust(), SignatureState(False), "ok bundle-signature: not signed; the policy requires no signature"),
    ],
)
def test_signature(trust: Trust, state: SignatureState, expected: str) -> None:
    assert [text_of(found) for found in check_signature(trust, state)] == [expected]
