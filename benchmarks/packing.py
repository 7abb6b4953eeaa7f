"""Checking, packing and unpacking a large bundle, beside sha256sum, openssl and tar."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.processor import processor
from benchmarks.rounds import take_turns
from benchmarks.table import print_table, ratio
from ortkit.exporters.packaging.pack import pack
from ortkit.runtime.bundle.folder import MANIFEST
from ortkit.runtime.pack.oci_layout import OciLayout
from ortkit.runtime.pack.unpack import unpack

BLOCK = 1 << 24


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.packing", description=__doc__)
    parser.add_argument("bundle", type=Path, help="a bundle whose manifest is taken; its weights are random bytes")
    parser.add_argument("--gigabytes", type=float, default=4, help="size of the weights")
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--hashing-only", action="store_true", help="neither pack nor unpack in turns")
    return parser.parse_args()


def write_bundle(template: Path, folder: Path, size: int) -> None:
    """A bundle with the manifest of another one and random external data."""
    shutil.copytree(template, folder)
    data, digest = folder / "model.onnx.data", hashlib.sha256()
    with data.open("wb") as out:
        for place in range(0, size, BLOCK):
            block = os.urandom(min(BLOCK, size - place))
            digest.update(block)
            out.write(block)
    manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    manifest["files"]["model.onnx.data"] = {"size": size, "sha256": digest.hexdigest()}
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def timed(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def check(path: Path) -> None:
    with OciLayout.open(path) as layout:
        layout.check()


def unpack_all(path: Path, out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    with OciLayout.open(path) as layout:
        for artifact in layout.artifacts:
            unpack(layout, artifact, out / artifact.name)


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def tar_and_hash(path: Path, out: Path) -> None:
    """What a site does by hand: extract, hash, flush."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    run("tar", "-xf", path, "-C", out)
    run("sha256sum", *sorted(found for found in out.rglob("*") if found.is_file()))
    run("sync", *sorted(found for found in out.rglob("*") if found.is_file()))


def main() -> None:
    options = parse_options()
    size = int(options.gigabytes * 1e9)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        place = Path(folder)
        bundle, packed = place / "bundle", place / "a.tar"
        write_bundle(options.bundle, bundle, size)
        pack([bundle], packed)
        runs: dict[str, Callable[[], object]] = {
            "sha256sum of the pack": partial(run, "sha256sum", packed),
            "openssl dgst -sha256": partial(run, "openssl", "dgst", "-sha256", packed),
            "ortkit: check the pack": partial(check, packed),
        }
        if not options.hashing_only:
            runs |= {
                "tar -x, sha256sum, sync": partial(tar_and_hash, packed, place / "by-hand"),
                "ortkit: unpack": partial(unpack_all, packed, place / "unpacked"),
                "ortkit: pack": partial(pack, [bundle], place / "b.tar"),
            }
        measured = take_turns([partial(timed, turn) for turn in runs.values()], options.repeats)
    seconds = dict(zip(runs, measured, strict=True))
    peers = {
        "openssl dgst -sha256": "sha256sum of the pack",
        "ortkit: check the pack": "sha256sum of the pack",
        "ortkit: unpack": "tar -x, sha256sum, sync",
    }
    print_table(
        f"a pack of {options.gigabytes:g} GB, {processor()}; medians of {options.repeats} rounds (range)",
        ["", "seconds", "MB/s", "speed / peer's"],
        [
            [
                name,
                f"{median(found):.2f}",
                f"{size / median(found) / 1e6:.0f}",
                ratio(seconds[peers[name]], found) if name in peers else "",
            ]
            for name, found in seconds.items()
        ],
    )


if __name__ == "__main__":
    main()
