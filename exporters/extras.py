"""What the export stage and its smaller part, the Hub's commands, need to have installed."""

from __future__ import annotations

import importlib.util

from ..runtime.errors import MissingPartError

EXTRAS = {
    "hub": ("the commands for the Hub and the catalog are", "pip install 'ortkit[hub]'"),
    "export": ("the export stage is", "pip install 'ortkit[cpu,export]'"),
}
"""Name of an extra -> what it is for, and how it is installed."""


def need(extra: str, *names: str) -> None:
    """Raise MissingPartError, which names the extra, when one of its modules is not installed."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        what, command = EXTRAS[extra]
        where = "on the machine that exports, " if extra == "export" else ""
        raise MissingPartError(
            f"{what} not installed here: there is no {', '.join(f'`{name}`' for name in missing)}",
            hint=f"{where}run `{command}`",
        )
