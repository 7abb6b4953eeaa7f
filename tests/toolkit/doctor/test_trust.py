# ruff: noqa: E501 - texts as they are printed
from __future__ import annotations

from pathlib import Path

import pytest

from ortkit.runtime.errors import BundleError, InputError
from ortkit.toolkit.doctor.bundles import check_bundle, look_at_bundle
from ortkit.toolkit.doctor.finding import Finding, Severity
from ortkit.toolkit.doctor.trust import SignatureState, Trust, check_signature, check_trust, look_at_trust
from tests.signers import signed, signing_key, write_public
from tests.tiny_bundles import write_embedder
from tests.toolkit.doctor.hosts import GOOD, text_of

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


def examine(path: Path) -> dict[str, Finding]:
    trust = look_at_trust()
    state = look_at_bundle(str(path), GOOD, trust, quick=True)
    return {found.check: found for found in (*check_trust(trust), *check_bundle(GOOD, trust, state))}


def test_a_real_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unsigned, signed by the trusted key, by another one, and a policy that cannot be read; no state is written."""
    bundle, key = write_embedder(tmp_path / "embedder").path, signing_key()
    write_public(tmp_path / "key.pub", key)
    policy = tmp_path / "policy.toml"
    monkeypatch.setenv("ORTKIT_POLICY", str(policy))
    policy.write_text('trusted_keys = ["key.pub"]\nrequire_signature = true\nstate = "releases.json"\n')

    found = examine(bundle)
    assert text_of(found["policy"]) == f"ok policy: `{policy}` requires a signature by one of 1 key or certificate"
    assert found["bundle-files"].severity is Severity.OK
    assert text_of(found["bundle-signature"]) == (
        f"error bundle-signature: `{bundle}` is not signed, and the policy `{policy}` requires a signature\n"
        "why: the policy refuses the bundle\n"
        "do: sign it where it is made: `ortkit sign embedder --key key.pem`\nexit: 7"
    )
    # Its graph is not opened.
    assert "bundle-provider" not in found

    signed(bundle, key, release=3)
    found = examine(bundle)
    assert found["bundle-signature"].severity is Severity.OK
    assert found["bundle-signature"].what.startswith("signed by key `")
    assert "bundle-provider" in found
    assert not (tmp_path / "releases.json").exists()

    bundle.chmod(0o777)
    assert text_of(examine(bundle)["bundle-signature"]) == (
        f"error bundle-signature: other users can change the bundle `{bundle}` after it was verified: `{bundle}` is "
        f"writable for its group or for all users, and the policy `{policy}` requires a signature\n"
        f"why: the policy refuses the bundle\ndo: `chmod -R go-w {bundle}`, as its owner\nexit: 7"
    )
    bundle.chmod(0o755)

    write_public(tmp_path / "key.pub", signing_key())
    assert examine(bundle)["bundle-signature"].exit_code == 7
    policy.write_text('trusted_keys = ["key.pub"]\n')
    assert examine(bundle)["bundle-signature"].severity is Severity.NOTE
    policy.write_text("trusted_keys = [")
    broken = examine(bundle)
    assert broken["policy"].what.startswith(f"the policy `{policy}` is not valid TOML: ")
    assert broken["policy"].exit_code == 2
