"""Packs and unpacks bundles again and again, killed at random moments.

`python -m tests.killed_packs BUNDLE FOLDER SEED COUNT` fails where a kill left a bundle or pack that is not whole, or
where the next run leaves what the killed one had begun.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ortkit.exporters.packaging.pack import pack
from ortkit.runtime.bundle.bundle import Bundle
from ortkit.runtime.pack.oci_layout import OciLayout
from ortkit.runtime.pack.unpack import unpack


def unpack_all(path: Path, out: Path) -> None:
    with OciLayout.open(path) as layout:
        for artifact in layout.artifacts:
            unpack(layout, artifact, out / artifact.name)


def check_pack(path: Path) -> None:
    with OciLayout.open(path) as layout:
        layout.check()


def struck(run: Callable[[], object], moment: float) -> bool:
    """Run in a process of its own, which is killed after some seconds; whether it was."""
    process = os.fork()
    if process == 0:
        # The system ends a process that does not handle this signal as it ends one that is killed.
        signal.setitimer(signal.ITIMER_REAL, moment)
        run()
        os._exit(0)
    status = os.waitpid(process, 0)[1]
    if not os.WIFSIGNALED(status) and os.waitstatus_to_exitcode(status) != 0:
        sys.exit(f"a run that was not killed failed: {status}")
    return os.WIFSIGNALED(status)


def timed(run: Callable[[], object]) -> float:
    """The seconds that a run takes."""
    begun = time.monotonic()
    run()
    return time.monotonic() - begun


def main(bundle: str, folder: str, seed: str, count: str) -> None:
    place, draw = Path(folder), random.Random(int(seed))
    name = Path(bundle).name
    out, stick, unpacked = place / "a.tar", place / "stick", place / "new"
    seconds = [timed(lambda: pack([bundle], out))]
    seconds += [timed(lambda: pack([bundle], stick, as_folder=True)), timed(lambda: unpack_all(out, unpacked))]
    whole = out.read_bytes()
    kills = 0
    for number in range(int(count)):
        shutil.rmtree(unpacked, ignore_errors=True)
        shutil.rmtree(stick, ignore_errors=True)
        if number % 2:
            out.unlink(missing_ok=True)
        moment = draw.uniform(0.001, seconds[number % 3])
        steps: list[tuple[Callable[[], object], Path, Callable[[Path], object]]] = [
            (lambda: pack([bundle], out), out, check_pack),
            (lambda: pack([bundle], stick, as_folder=True), stick, check_pack),
            (lambda: unpack_all(out, unpacked), unpacked / name, Bundle.open),
        ]
        run, target, check = steps[number % 3]
        if not out.exists() and number % 3 == 2:
            pack([bundle], out)
        kills += struck(run, moment)
        # An earlier pack is whole, or the new one is.
        if target.exists():
            check(target)
            if target != out:
                shutil.rmtree(target)
        run()
        check(target)
        left = [found.name for where in (place, unpacked) if where.exists() for found in where.iterdir()]
        if any(found.startswith(".") for found in left):
            sys.exit(f"a run left what a killed one had begun: {left}")
        if out.exists() and out.read_bytes() != whole:
            sys.exit("the pack is another one")
    print(kills)


if __name__ == "__main__":
    main(*sys.argv[1:])
