"""`python -m ortkit.runtime.installer`: what PREFIX/bin/ortkit-install runs."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
