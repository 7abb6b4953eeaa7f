"""Runs the installer of a kit in an emulated Python, and what it starts under the same emulator.

`emulated_installer.py ZIP ARGUMENT...`. Without a handler of the kernel for foreign programs (binfmt_misc), a process
cannot start another one of its own kind. `ortkit verify` starts one too, so `tests.cross.verify`, which replays the
certificate in its own process, takes its place. `ortkit doctor` starts one for each library: these are emulated too,
and `--quick` leaves out the replay. EMULATOR has the command in JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

EMULATOR: list[str] = json.loads(os.environ["EMULATOR"])
REPOSITORY = Path(__file__).parents[2]
VERIFY = f"""
import sys
sys.path.append({str(REPOSITORY)!r})
from tests.cross.verify import main
sys.exit(main(sys.argv[1:]))
"""

DOCTOR = f"""
import subprocess, sys
from types import SimpleNamespace
from ortkit.__main__ import main
from ortkit.toolkit.doctor import packages
def run(command, **options):
    return subprocess.run([*{EMULATOR!r}, *command], **options)
packages.subprocess = SimpleNamespace(**vars(subprocess) | {{"run": run}})
sys.argv = ["ortkit", "doctor", "--quick", *sys.argv[1:]]
main()
"""


def run_emulated(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run`; `ortkit verify` and `ortkit doctor` become what can run here."""
    python, *arguments = command
    if arguments[:4] == ["-I", "-m", "ortkit", "verify"]:
        arguments = ["-I", "-c", VERIFY, *arguments[4:]]
    if arguments[:4] == ["-I", "-m", "ortkit", "doctor"]:
        arguments = ["-I", "-c", DOCTOR, *arguments[4:]]
    return subprocess.run([*EMULATOR, python, *arguments], **options)  # noqa: PLW1510 - as the caller says


def main() -> int:
    sys.argv = sys.argv[1:]
    sys.path.insert(0, sys.argv[0])
    from ortkit.runtime.installer import cli, environment

    environment.subprocess = SimpleNamespace(**vars(subprocess) | {"run": run_emulated})
    return int(cli.main())


if __name__ == "__main__":
    sys.exit(main())
