"""The machine's policy holds for packs: what it refuses is neither shown nor unpacked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ortkit.exporters.packaging.sign import SigningKey
from ortkit.runtime.bundle.bundle import Bundle
from tests.commands import Finished
from tests.packs import contents, names_in, tar_of, write_bundle
from tests.signers import signed, signing_key, write_public

Run = Callable[..., Finished]


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SigningKey:
    """The key that the policy of this machine trusts."""
    made = signing_key()
    write_public(tmp_path / "key.pub", made)
    text = 'require_signature = true\ntrusted_keys = ["key.pub"]\nstate = "state"\n'
    (tmp_path / "policy.toml").write_text(text)
    for file in ("policy.toml", "key.pub"):
        (tmp_path / file).chmod(0o644)
    monkeypatch.setenv("ORTKIT_POLICY", str(tmp_path / "policy.toml"))
    monkeypatch.chdir(tmp_path)
    return made


def packed(ortkit: Run, key: SigningKey | None, release: int | None = None) -> Path:
    """A pack, made on a machine without a policy."""
    bundle = Path("made") / f"{release}" / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ORTKIT_POLICY")
        write_bundle(bundle)
        if key is not None:
            signed(bundle, key, release)
        assert ortkit("pack", bundle, "-o", f"{release}.tar").code == 0
    return Path(f"{release}.tar")


def test_a_signed_bundle_is_unpacked_with_its_signature(ortkit: Run, key: SigningKey) -> None:
    pack = packed(ortkit, key, 3)

    assert ortkit("inspect", pack).code == 0
    assert ortkit("unpack", pack, "-o", "new").out == b"new/model\n"
    assert contents(Path("new/model")) == contents(Path("made/3/model"))
    assert "model.sig" in names_in(Path("new/model"))
    assert Bundle.open("new/model").manifest.release == 3


def test_a_bundle_that_is_not_signed(ortkit: Run, key: SigningKey, tmp_path: Path) -> None:  # noqa: ARG001
    pack = packed(ortkit, None)
    for command in (["inspect", pack], ["unpack", pack, "-o", "new"]):
        finished = ortkit(*command)
        assert (finished.code, finished.out) == (7, b"")
        assert finished.err == (
            f"error: `model` in the pack `{pack}` is not signed, and the policy `{tmp_path / 'policy.toml'}` requires "
            "a signature\n\nhint: sign the bundle where it is made, with `ortkit sign`, and pack it again\n"
        )
    assert not Path("new").exists()


def test_a_bundle_that_somebody_else_signed(ortkit: Run, key: SigningKey) -> None:  # noqa: ARG001
    finished = ortkit("unpack", packed(ortkit, signing_key()), "-o", "new")

    assert finished.code == 7
    assert finished.err.startswith("error: the signature of `model` in the pack `None.tar` ")
    assert not Path("new").exists()


def test_the_signature_of_another_bundle(ortkit: Run, key: SigningKey) -> None:
    """A pack that is right in all its hashes, but for the signature."""
    packed(ortkit, key, 3)
    other = packed(ortkit, key, 4)
    from tests.packs import layout_of

    files = contents(Path("made/3/model")) | {"model.sig": Path("made/4/model/model.sig").read_bytes()}
    other.write_bytes(tar_of(layout_of(files)))
    finished = ortkit("unpack", other, "-o", "new")

    assert finished.code == 7
    assert finished.err.startswith("error: the signature of `tiny` in the pack `4.tar` ")
    assert not Path("new").exists()


def test_an_older_release(ortkit: Run, key: SigningKey) -> None:
    new, old = packed(ortkit, key, 3), packed(ortkit, key, 2)
    assert ortkit("unpack", new, "-o", "new").code == 0
    # Opening it records that release 3 is trusted.
    assert ortkit("inspect", "new/model").code == 0
    refused = ortkit("unpack", old, "-o", "old")

    assert refused.code == 7
    assert "release" in refused.err
    assert not Path("old").exists()
    assert ortkit("unpack", old, "-o", "old", "--allow-downgrade").code == 0
    assert json.loads((Path("old") / "model" / "manifest.json").read_text())["release"] == 2
