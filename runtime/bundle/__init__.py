"""Bundles: manifest, files, hashes, and writing them."""
