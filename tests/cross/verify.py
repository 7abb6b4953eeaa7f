"""Replays a bundle's certificate in this process: `edgekit verify` starts another, which an emulator would not run."""

from __future__ import annotations

import sys
from pathlib import Path

from runtime import EdgekitError
from runtime.bundle import Bundle
from runtime.replay import replay
from runtime.verification import model_of

try:
    found = replay(model_of(Bundle.open(Path(sys.argv[1]))))
except EdgekitError as error:
    sys.exit(f"error: {error}")
print(f"{found.agreement}, {'the same' if found.same_bits else 'not the same'} bits")
