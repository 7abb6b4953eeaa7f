"""Read and write files, pipes and records."""
