"""Debian's skopeo copies packs to a registry on the loopback and back, and bundles stay the same to the byte."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ortkit import Bundle
from ortkit.exporters.packaging.pack import pack
from ortkit.runtime.pack.oci_layout import OciLayout
from ortkit.runtime.pack.unpack import bundles_in, unpack
from tests.packs import bundle_files, contents, write_bundle

ROOT = Path(__file__).parents[3]
SETUP = ROOT / "tests" / "pack" / "setup.sh"
IMPOSSIBLE = 77
CONFIG = """
version: 0.1
log: {{level: error}}
storage: {{filesystem: {{rootdirectory: {storage}}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


@dataclass(frozen=True)
class Registry:
    """A registry on the loopback, and skopeo."""

    programs: Path
    port: int
    folder: Path

    def copy(self, source: str, target: str) -> None:
        """Copy an artifact; `docker:NAME` is one of the registry."""
        first, second = (
            place.replace("docker:", f"docker://127.0.0.1:{self.port}/models/") for place in (source, target)
        )
        tls = ["--src-tls-verify=false", "--dest-tls-verify=false"]
        subprocess.run(
            [self.programs / "skopeo", "copy", "--quiet", "--insecure-policy", *tls, first, second],
            check=True,
            env=environment(self.programs) | {"TMPDIR": str(self.folder), "HOME": str(self.folder)},
        )


def environment(programs: Path) -> dict[str, str]:
    root = programs.parents[1]
    libraries = [str(path) for path in (*root.glob("lib/*-linux-gnu"), *root.glob("usr/lib/*-linux-gnu"))]
    return {"PATH": os.environ["PATH"], "LD_LIBRARY_PATH": ":".join(libraries)}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    made = subprocess.run(
        ["bash", SETUP, ROOT / ".cache" / "skopeo"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    if made.returncode == IMPOSSIBLE:
        pytest.skip(f"skopeo: would copy packs to a registry and back ({made.stdout.strip()})")
    assert made.returncode == 0, made.stderr
    folder = tmp_path_factory.mktemp("registry")
    programs = ROOT / ".cache" / "skopeo" / "root" / "usr" / "bin"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "config.yml").write_text(CONFIG.format(storage=folder / "storage", port=port))
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [programs / "docker-registry", "serve", folder / "config.yml"],
            env=environment(programs),
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
    try:
        wait_for(port, process)
        yield Registry(programs, port, folder)
    finally:
        process.terminate()
        process.wait()


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert process.poll() is None, "the registry has ended"
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            time.sleep(0.1)
        else:
            return
    pytest.fail("the registry does not answer")


def unpacked(path: Path, out: Path) -> dict[str, bytes]:
    with OciLayout.open(path) as layout:
        for artifact in bundles_in(layout):
            unpack(layout, artifact, out / artifact.name)
    return contents(out)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["oci-archive", "oci"])
def test_a_pack_goes_through_a_registry(registry: Registry, int8_bundle: Bundle, tmp_path: Path, form: str) -> None:
    bundles = {bundle.path.name: bundle.path for bundle in (int8_bundle, write_bundle(tmp_path / "small"))}
    pack([*bundles.values()], tmp_path / "a", as_folder=form == "oci")
    for name in bundles:
        registry.copy(f"{form}:{tmp_path / 'a'}:{name}", f"docker:{name.lower()}:v1")
        registry.copy(f"docker:{name.lower()}:v1", f"{form}:{tmp_path / 'back'}-{name}:{name}")

    for name, path in bundles.items():
        back = tmp_path / f"back-{name}"
        assert unpacked(back, tmp_path / f"out-{name}") == {
            f"{name}/{file}": content for file, content in contents(path).items()
        }
        with OciLayout.open(tmp_path / "a") as sent, OciLayout.open(back) as received:
            assert received.artifacts == (sent.artifact(name),)


@pytest.mark.slow
def test_a_registry_completes_an_update(registry: Registry, tmp_path: Path) -> None:
    """A pack without the weights is pushed to a registry that has them, and comes back whole."""
    tokenizer = b"t" * 100_000
    old = write_bundle(tmp_path / "old" / "model", bundle_files(tokenizer=tokenizer))
    new = write_bundle(tmp_path / "new" / "model", bundle_files(graph=b"better", tokenizer=tokenizer))
    pack([old.path], tmp_path / "old.tar")
    digest = f"sha256:{old.manifest.files['tokenizer.json'].sha256}"
    update = pack([new.path], tmp_path / "update.tar", without=[digest])
    registry.copy(f"oci-archive:{tmp_path / 'old.tar'}:model", "docker:model:v1")
    registry.copy(f"oci-archive:{tmp_path / 'update.tar'}:model", "docker:model:v2")
    registry.copy("docker:model:v2", f"oci-archive:{tmp_path / 'back.tar'}:model")

    assert (update.left_out, (tmp_path / "update.tar").stat().st_size < len(tokenizer)) == (1, True)
    assert unpacked(tmp_path / "back.tar", tmp_path / "out") == contents(tmp_path / "new")
