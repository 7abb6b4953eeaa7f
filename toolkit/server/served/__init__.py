"""The bundles and indexes that a server has open."""
