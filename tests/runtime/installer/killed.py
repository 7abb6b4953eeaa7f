"""`python -m tests.runtime.installer.killed COUNT ARGUMENT...`: the installer, killed before it changes a file system.

It is killed before its COUNT-th change (a rename, a link, a new or removed file or folder, a program that is started).
Prints the number of changes where it ends before.
"""

from __future__ import annotations

import os
import signal
import sys

from ortkit.runtime.installer.cli import main

CHANGES = {
    *("os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir", "os.mkdir", "os.chmod"),
    *("shutil.rmtree", "subprocess.Popen"),
}
"""Python's audit events; opening a file to write is another one."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def kill_before(count: int) -> list[int]:
    """Arm this process, and return a list whose only entry is the number of changes so far."""
    changes = [0]

    def look(event: str, arguments: tuple) -> None:
        if event in CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING):
            changes[0] += 1
            if changes[0] == count:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)
    return changes


if __name__ == "__main__":
    found = kill_before(int(sys.argv[1]))
    code = main(sys.argv[2:])
    print(found[0])
    sys.exit(code)
