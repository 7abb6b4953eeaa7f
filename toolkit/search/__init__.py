"""Search over one's own files: the folder, its documents, their chunks, the index."""
