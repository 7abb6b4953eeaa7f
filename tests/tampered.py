"""Bundles with other files or facts than they were written with, their hashes right again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ortkit import Bundle, Manifest
from ortkit.runtime.bundle.bundle import TOKENIZER
from ortkit.runtime.bundle.folder import MANIFEST
from ortkit.runtime.bundle.manifest import FileRecord
from ortkit.runtime.bundle.manifest_json import manifest_to_json


def changed_bundle(
    bundle: Bundle,
    target: Path,
    *,
    tokenizer: Callable[[dict[str, Any]], None] | None = None,
    files: Callable[[Path], None] | None = None,
    manifest: Callable[[Manifest], Manifest] | None = None,
) -> Bundle:
    """Copy a bundle and change its tokenizer.json, its files or its manifest."""
    shutil.copytree(bundle.path, target)
    if tokenizer is not None:
        path = target / TOKENIZER
        content = json.loads(path.read_text(encoding="utf-8"))
        tokenizer(content)
        path.write_text(json.dumps(content), encoding="utf-8")
    if files is not None:
        files(target)
    found = bundle.manifest if manifest is None else manifest(bundle.manifest)
    records = {name: record_of(target / name) for name in found.files}
    (target / MANIFEST).write_text(manifest_to_json(dataclasses.replace(found, files=records)), encoding="utf-8")
    return Bundle.open(target)


def record_of(path: Path) -> FileRecord:
    content = path.read_bytes()
    return FileRecord(len(content), hashlib.sha256(content).hexdigest())


def without_special_tokens(content: dict[str, Any]) -> None:
    """Have a tokenizer.json add no special tokens, so that an empty text has no tokens."""
    content["post_processor"] = None
