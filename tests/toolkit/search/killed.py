"""`python -m tests.toolkit.search.killed INDEX FOLDER BUNDLE [COUNT]`: an update that is killed.

Prints a line when it begins, and then the number of changes of the file system that Python knows of. With COUNT, it
kills itself before that change; without, whoever started it does, at any moment.
"""

from __future__ import annotations

import sys

from ortkit import Embedder, Index
from ortkit.toolkit.search import batches
from tests.kill_points import kill_before

CHANGES = {"os.rename", "os.remove", "os.truncate", "sqlite3.connect"}
CHUNKS_OF_A_BATCH = 3


if __name__ == "__main__":
    index, folder, bundle = sys.argv[1:4]
    batches._BATCH_CHUNKS = CHUNKS_OF_A_BATCH
    embedder = Embedder(bundle, workers=1)
    changes = kill_before(int(sys.argv[4]) if len(sys.argv) > 4 else 0, CHANGES)
    print("begins", flush=True)
    Index.build(index, folder, embedder, chunk_tokens=48).close()
    print(changes[0])
