"""`python -m toolkit` is `edgekit`."""

from toolkit.cli import main

main()
