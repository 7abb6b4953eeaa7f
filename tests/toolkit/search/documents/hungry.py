"""The process that reads documents, with a reader of PDF that takes all memory."""

from __future__ import annotations

CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from ortkit.toolkit.search.documents import library_process, pdf; "
    "pdf.read_pdf = lambda *_: iter([bytearray(4 << 30)]); "
    "library_process.child()"
)
