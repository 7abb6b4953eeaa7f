from __future__ import annotations

import dataclasses
from pathlib import Path

import onnxruntime
import pytest

from ortkit import Bundle, Provider
from ortkit.runtime.bundle.manifest import Buckets, Layout
from ortkit.runtime.cache_folder import cache_folder, usable_folder
from ortkit.runtime.session.config import SessionConfig
from ortkit.runtime.session.model_cache import model_cache_of
from tests.tiny_bundles import rehash, write_embedder


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_embedder(tmp_path / "embedder")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ORTKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_bundle_that_is_replaced_has_another_folder(bundle: Bundle, own_cache: Path) -> None:
    """CoreML's provider does not notice another graph in the same place."""
    first = model_cache_of(bundle)
    assert first is not None
    assert first.parent == own_cache / "compiled"
    assert first.name.startswith(f"{bundle.digest[:16]}-onnxruntime-{onnxruntime.__version__}-")
    assert model_cache_of(bundle) == first

    rehash(bundle.path, lambda manifest: manifest.update(name="another"))

    assert model_cache_of(bundle) != first


def test_another_macos_or_onnxruntime_has_another_folder(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {model_cache_of(bundle)}
    monkeypatch.setattr("platform.mac_ver", lambda: ("26.1", ("", "", ""), "arm64"))
    folders.add(model_cache_of(bundle))
    monkeypatch.setattr("ortkit.runtime.session.model_cache.onnxruntime_version", lambda: "1.99")
    folders.add(model_cache_of(bundle))

    assert len(folders) == 3


def test_a_cache_that_is_off(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORTKIT_CACHE", "")

    assert model_cache_of(bundle) is None


def test_a_user_without_a_home_has_no_cache(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs as a user whom it does not know."""
    monkeypatch.delenv("ORTKIT_CACHE")

    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.home", unknown)

    assert cache_folder() is None
    assert model_cache_of(bundle) is None


def test_a_folder_that_cannot_be_written_or_is_open_to_others(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert usable_folder(own_cache / "new" / "one") == own_cache / "new" / "one"
    assert (own_cache / "new" / "one").stat().st_mode & 0o777 == 0o700
    (own_cache / "file").write_text("a file")
    assert usable_folder(own_cache / "file") is None
    assert usable_folder(own_cache / "file" / "below") is None
    for mode in (0o770, 0o707):
        (own_cache / "new").chmod(mode)
        assert usable_folder(own_cache / "new") is None
    (own_cache / "new").chmod(0o700)
    with monkeypatch.context() as patched:
        patched.setattr("os.geteuid", lambda: 12345)
        assert usable_folder(own_cache / "new") is None
    monkeypatch.setattr("os.access", lambda *_: False)
    assert usable_folder(own_cache / "new") is None


@pytest.mark.parametrize(("system", "folder"), [("darwin", "Library/Caches/ortkit"), ("linux", ".cache/ortkit")])
def test_by_default_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, system: str, folder: str) -> None:
    for name in ("ORTKIT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", system)

    assert cache_folder() == tmp_path / folder


def test_only_what_is_compiled_has_one(bundle: Bundle, own_cache: Path) -> None:
    assert SessionConfig.of(bundle).model_cache is None
    assert not own_cache.exists()
    manifest = dataclasses.replace(
        bundle.manifest,
        provider=Provider.COREML,
        layout=Layout.TEXTS_FIRST,
        inputs=("input_ids", "bias"),
        buckets=Buckets(tokens=(64,), texts=(1,)),
    )
    coreml = Bundle(bundle.path, manifest)

    assert SessionConfig.of(coreml).model_cache == model_cache_of(coreml)
