"""What `ortkit inspect` shows of an index."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ...runtime.bundle.folder import MANIFEST
from ...runtime.bundle.records import write_record
from ...runtime.sizes import as_option, megabytes
from ..console.terminal import escaped_json, print_table
from ..search.folder import FolderRules


def is_index(name: str) -> bool:
    """Whether this is a folder that `ortkit index` made."""
    from ..search.storage.index_file import INDEX_FILE

    folder = Path(name)
    return (folder / INDEX_FILE).is_file() and not (folder / MANIFEST).exists()


def inspect_index(name: str, *, as_json: bool) -> None:
    """Print what an index was built from, and its size; raises what `read_index_file` raises."""
    from ..search.storage.index_file import read_index_file

    index = read_index_file(Path(name))
    origin = index.origin
    fields = {
        "index": name,
        "folder": str(origin.folder_path),
        "bundle": origin.bundle.name,
        "digest": origin.bundle.digest,
        "dimension": origin.bundle.dimension,
        "chunk_tokens": origin.chunking.max_tokens,
        "overlap": origin.chunking.overlap,
        "rules": write_record(index.rules),
        "files": index.files,
        "chunks": index.chunks,
        "size": sum(index.sizes.values()),
        "built": index.built,
        "generation": index.generation,
        "format": index.format,
    }
    if as_json:
        click.echo(escaped_json(json.dumps(fields, indent=2, ensure_ascii=False)))
        return
    print_table(
        [
            ("index", name),
            ("of", f"{fields['folder']}: {index.files} files, {index.chunks} chunks"),
            (
                "embedder",
                f"{origin.bundle.name}, digest {origin.bundle.digest[:16]}, {origin.bundle.dimension} dimensions",
            ),
            ("chunks", f"up to {origin.chunking.max_tokens} tokens, overlap {origin.chunking.overlap}"),
            ("rules", described_rules(index.rules)),
            ("size", megabytes(sum(index.sizes.values()))),
            ("built", f"{index.built}, generation {index.generation}, format {index.format}"),
        ]
    )


def described_rules(rules: FolderRules) -> str:
    """Which files an index has, in words: `*.md, without drafts/, up to 64M`."""
    named = [
        ", ".join(rules.include) or "all files",
        *([f"without {', '.join(rules.exclude)}"] if rules.exclude else []),
        *(["hidden ones too"] if rules.hidden else []),
        f"up to {as_option(rules.max_file_bytes)}",
        *(["links followed"] if rules.follow_links else []),
        *([f"ignore files {rules.ignore_file}"] if rules.ignore_file != FolderRules.ignore_file else []),
    ]
    return ", ".join(named)
