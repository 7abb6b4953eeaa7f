"""`python -m tests.fuzz.fuzz TARGET CORPUS [LIBFUZZER OPTION]...`: fuzz a target, guided by coverage (atheris).

CORPUS is a folder that keeps what reached new code; it is filled with valid inputs first.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["ortkit"]):
    import ortkit.runtime.pack.unpack  # noqa: F401

from tests.fuzz.targets import TARGETS, seeds


def main(target: str, corpus: str, *options: str) -> None:
    folder = Path(corpus)
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds(target):
        (folder / hashlib.sha256(seed).hexdigest()).write_bytes(seed)
    # An input may take 2 s, and 256 MiB beside the interpreter and the instrumented code.
    limits = ["-timeout=2", "-rss_limit_mb=400", f"-max_len={1 << 16}"]
    atheris.Setup([sys.argv[0], *limits, *options, str(folder)], TARGETS[target])
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
