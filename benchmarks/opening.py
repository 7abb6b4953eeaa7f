"""Opening a large bundle: not verified, hashed, unchanged since, and with a signature; beside `sha256sum`."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.processor import processor
from benchmarks.rounds import take_turns
from benchmarks.table import print_table
from ortkit.exporters.packaging.sign import generate_key, read_key, sign_bundle
from ortkit.runtime.bundle.bundle import GRAPH_DATA
from ortkit.runtime.file_hash import sha256_of

OPEN = """
import sys, time
from ortkit import Bundle
from ortkit.runtime.trust import public_key
if sys.argv[2] == "openssl":
    sys.modules["cryptography"] = None
begun = time.perf_counter()
Bundle.unsigned(sys.argv[1]) if sys.argv[2] == "listed" else Bundle.open(sys.argv[1])
print(time.perf_counter() - begun)
"""
SETTLED = 3
"""Seconds after which a written file counts as unchanged."""
BLOCK = 1 << 20


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.opening", description=__doc__)
    parser.add_argument("bundle", type=Path, help="any bundle, to which a large file is added")
    parser.add_argument("--gigabytes", type=float, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    with tempfile.TemporaryDirectory(prefix="ortkit-opening-") as name:
        folder = Path(name)
        bundle = enlarged(options.bundle, folder / "bundle", int(options.gigabytes * 1e9))
        generate_key(folder / "key.pem", folder / "key.pub")
        sign_bundle(bundle, read_key(folder / "key.pem", passphrase=bytes))
        (folder / "policy.toml").write_text('trusted_keys = ["key.pub"]\nrequire_signature = true\n')
        time.sleep(SETTLED)
        signed = {"ORTKIT_POLICY": str(folder / "policy.toml")}
        cached = {"ORTKIT_CACHE": str(folder / "cache")}
        opening(bundle, "open", **cached)
        ways = {
            "names and sizes alone": partial(opening, bundle, "listed"),
            "all hashed": partial(opening, bundle, "open", ORTKIT_CACHE=""),
            "unchanged since": partial(opening, bundle, "open", **cached),
            "unchanged, signature by cryptography": partial(opening, bundle, "open", **cached, **signed),
            "unchanged, signature by openssl": partial(opening, bundle, "openssl", **cached, **signed),
            "sha256sum": partial(sha256sum, bundle),
        }
        seconds = dict(zip(ways, take_turns(list(ways.values()), options.repeats), strict=True))
    listed, peer = median(seconds["names and sizes alone"]), median(seconds["sha256sum"])
    print_table(
        f"opening a bundle of {options.gigabytes:g} GB; medians of {options.repeats} rounds; {processor()}",
        ["way", "seconds", "more than names and sizes, ms", "sha256sum / way"],
        [
            [way, f"{median(own):.4f}", f"{(median(own) - listed) * 1e3:.1f}", f"{peer / median(own):.2f}"]
            for way, own in seconds.items()
        ],
    )


def enlarged(source: Path, target: Path, size: int) -> Path:
    """A copy of a bundle with one more large file."""
    shutil.copytree(source, target)
    (target / "model.sig").unlink(missing_ok=True)
    block = os.urandom(BLOCK)
    with (target / GRAPH_DATA).open("wb") as file:
        for place in range(0, size, BLOCK):
            file.write(block[: min(BLOCK, size - place)])
    manifest = json.loads((target / "manifest.json").read_text("utf-8"))
    manifest["files"][GRAPH_DATA] = {"size": size, "sha256": sha256_of(target / GRAPH_DATA)}
    (target / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    return target


def opening(bundle: Path, way: str, **environment: str) -> float:
    """Seconds of one opening in a process of its own, without the start of Python."""
    command = [sys.executable, "-c", OPEN, str(bundle), way]
    settings = {name: value for name, value in os.environ.items() if name != "ORTKIT_POLICY"} | environment
    return float(subprocess.run(command, env=settings, capture_output=True, text=True, check=True).stdout)


def sha256sum(bundle: Path) -> float:
    begun = time.perf_counter()
    files = [path for path in bundle.iterdir() if path.name not in {"manifest.json", "model.sig"}]
    subprocess.run(["sha256sum", *files], capture_output=True, check=True)
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
