"""The file of a signature in a bundle's folder. Opening a bundle needs no more of signatures where none is required."""

SIGNATURE = "model.sig"
"""The file of a signature in a bundle's folder, over all other files."""
LARGEST_SIGNATURE = 1 << 21
"""Bytes: 7,000 files and more. As JSON it may take a hundred times that in memory."""
