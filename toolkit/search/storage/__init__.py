"""What is on disk of an index: written by one process, read by any number."""
