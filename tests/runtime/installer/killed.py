"""`python -m tests.runtime.installer.killed COUNT ARGUMENT...`: the installer, killed before it changes a file system.

It is killed before its COUNT-th change (a rename, a link, a new or removed file or folder, a program that is started).
Prints the number of changes where it ends before.
"""

from __future__ import annotations

import sys

from ortkit.runtime.installer.cli import main
from tests.kill_points import kill_before

CHANGES = {
    *("os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir", "os.mkdir", "os.chmod"),
    *("shutil.rmtree", "subprocess.Popen"),
}
"""Python's audit events; opening a file to write is another one."""


if __name__ == "__main__":
    found = kill_before(int(sys.argv[1]), CHANGES)
    code = main(sys.argv[2:])
    print(found[0])
    sys.exit(code)
