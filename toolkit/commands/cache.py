"""`ortkit cache`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from ...runtime.sizes import megabytes
from ..console.help import ExampleCommand
from ..console.terminal import escaped_json, print_table, say

if TYPE_CHECKING:
    from ...runtime.session.caches import Cached


@click.command(
    cls=ExampleCommand,
    examples=["ortkit cache", "ortkit cache clear", "ortkit cache clear --all", "ortkit cache --json"],
)
@click.argument("action", type=click.Choice(["show", "clear"]), default="show", metavar="[show|clear]")
@click.option("--all", "everything", is_flag=True, help="With clear: delete downloaded checkpoints too.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array with each kind: folder, entries and bytes.")
def cache(*, action: str, everything: bool, as_json: bool) -> None:
    """Show what is kept on disk beside bundles, or delete it.

    Kept are: models that CoreML compiled, records of golden texts that were compared at the first use of a bundle on a
    GPU or CoreML, and checkpoints that an export downloaded from a package index. ORTKIT_CACHE names another folder for
    all of them; empty, the first two are not kept. `clear` deletes these two, which are made again at the next start.

    Interrupted exports are shown, and never deleted: the same `ortkit export` resumes them. Checkpoints from the Hub
    are in its own cache (`hf cache`).
    """
    from ...runtime.session import caches

    kept, downloads = caches.model_caches(), caches.downloads()
    if action == "clear":
        cleared = [*kept, *(downloads if everything else [])]
        for one in cleared:
            caches.delete(one)
        _show(cleared, as_json=as_json, verb="deleted")
        return
    if everything:
        raise click.UsageError("'--all' needs 'clear'.")
    _show([*kept, *downloads, caches.unfinished_exports()], as_json=as_json)


def _show(found: list[Cached], *, as_json: bool, verb: str = "") -> None:
    if as_json:
        fields = [
            {
                "name": one.name,
                "folder": str(one.folder),
                "entries": [entry.name for entry in one.entries],
                "bytes": one.size,
            }
            for one in found
        ]
        click.echo(escaped_json(json.dumps(fields, indent=2, ensure_ascii=False)))
    elif verb:
        say(f"{verb} {sum(len(one.entries) for one in found)} entries, {megabytes(sum(one.size for one in found))}")
    else:
        rows = [[one.name, str(len(one.entries)), megabytes(one.size), str(one.folder), one.what] for one in found]
        print_table([["name", "entries", "size", "folder", "what"], *rows])
