"""Packs: OCI image layouts in a tar or folder, read strictly, written and unpacked."""
