"""The installer of kits: runs on an appliance with its Python and the standard library alone."""
