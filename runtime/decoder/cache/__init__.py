"""The KV cache of a sequence, its memory, and what is kept of it: on disk, and between requests."""
