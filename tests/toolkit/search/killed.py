"""`python -m tests.toolkit.search.killed INDEX FOLDER BUNDLE [COUNT]`: an update that is killed.

Prints a line when it begins, and then the number of changes of the file system that Python knows of. With COUNT, it
kills itself before that change; without, whoever started it does, at any moment.
"""

from __future__ import annotations

import os
import signal
import sys

from ortkit import Embedder, Index
from ortkit.toolkit.search import update

CHANGES = {"os.rename", "os.remove", "os.truncate", "sqlite3.connect"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHUNKS_OF_A_BATCH = 3


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
    index, folder, bundle = sys.argv[1:4]
    update._BATCH_CHUNKS = CHUNKS_OF_A_BATCH
    embedder = Embedder(bundle, workers=1)
    changes = kill_before(int(sys.argv[4]) if len(sys.argv) > 4 else 0)
    print("begins", flush=True)
    Index.build(index, folder, embedder, chunk_tokens=48).close()
    print(changes[0])
