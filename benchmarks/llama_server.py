"""Build llama.cpp's own server: `python -m benchmarks.llama_server FOLDER`, with CMake, Ninja and a C++ compiler.

The source of llama-cpp-python, as pinned in `peers-compiled.txt`, has all of llama.cpp. llama-cpp-python's own server
answers one request at a time; `llama-server` is the one with continuous batching. Nothing else is fetched: no page, and
no TLS. `-march=native` and OpenMP are llama.cpp's defaults.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
from pathlib import Path

from benchmarks.peers import REPOSITORY

PINS = REPOSITORY / "benchmarks" / "peers-compiled.txt"
DISTRIBUTION = "llama-cpp-python"
PROGRAMS = ("llama-server", "llama-quantize")
FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
)


def pinned() -> str:
    """The pinned requirement, such as `llama-cpp-python==0.3.36`."""
    lines = PINS.read_text(encoding="utf-8").splitlines()
    return next(line.strip() for line in lines if line.startswith(f"{DISTRIBUTION}=="))


def source_of(folder: Path) -> Path:
    """The folder of llama.cpp's source, fetched by pip where it is not there yet."""
    root = f"{DISTRIBUTION.replace('-', '_')}-{pinned().partition('==')[2]}"
    if not (folder / root).exists():
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps"]
        subprocess.run([*command, f"--no-binary={DISTRIBUTION}", "--dest", str(folder), pinned()], check=True)
        with tarfile.open(folder / f"{root}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    return folder / root / "vendor" / "llama.cpp"


def build(folder: Path, *, jobs: int) -> Path:
    """Build the programs, and return the server's path."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "build"
    subprocess.run(["cmake", "-G", "Ninja", "-S", str(source_of(folder)), "-B", str(target), *FLAGS], check=True)
    subprocess.run(["ninja", "-C", str(target), "-j", str(jobs), *PROGRAMS], check=True)
    return target / "bin" / PROGRAMS[0]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.llama_server", description=__doc__)
    parser.add_argument("folder", type=Path, help="about 1 GB is written there")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    print(build(options.folder, jobs=options.jobs))


if __name__ == "__main__":
    main()
