"""Open a checkpoint with sentence-transformers, the library that it was published for.

Nothing is downloaded and no code of a checkpoint runs: `local_files_only`, no `trust_remote_code`, float32, CPU. Files
that later versions of the libraries wrote are put in terms that the installed versions read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.files import MODULES, TOKENIZER_CONFIG
from .library_errors import library_errors
from .loading import load_tokenizer, quiet

VERSIONS = f"transformers {transformers.__version__}, torch {torch.__version__}, float32"


def open_published(checkpoint: Checkpoint, model_class: Callable[..., Any], **model_options: Any) -> Any:
    """The model as `model_class` of sentence-transformers builds it; raises CheckpointError when it cannot."""
    message = f"sentence-transformers cannot open `{checkpoint.top}`"
    with quiet(), readable_folder(checkpoint) as folder, library_errors(message):
        return model_class(
            str(folder),
            device="cpu",
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"dtype": torch.float32, "use_safetensors": True, **model_options},
        ).eval()


@contextmanager
def readable_folder(checkpoint: Checkpoint) -> Iterator[Path]:
    """The checkpoint's folder, or a copy of links where the installed versions would misread some of its files."""
    changed = _changed_files(checkpoint)
    settings = checkpoint.read_json(TOKENIZER_CONFIG) or {}
    # Transformers 4 does not read what transformers 5 writes, but for what `load_tokenizer` knows of it.
    later = settings.get("tokenizer_class") == "TokenizersBackend" or isinstance(
        settings.get("extra_special_tokens"), list
    )
    if not changed and not later:
        yield checkpoint.top
        return
    with TemporaryDirectory() as name:
        folder = Path(name)
        for path in checkpoint.top.rglob("*"):
            if path.is_file():
                target = folder / path.relative_to(checkpoint.top)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(path.absolute())
        for file, content in changed.items():
            (folder / file).unlink()
            (folder / file).write_text(json.dumps(content), encoding="utf-8")
        if later:
            written = folder / "written"
            load_tokenizer(checkpoint).save_pretrained(written)
            for path in written.iterdir():
                path.replace(folder / checkpoint.subfolder / path.name)
        yield folder


def _changed_files(checkpoint: Checkpoint) -> dict[str, Any]:
    """Files that the installed versions do not read as they are meant, and what they would have to say."""
    changed: dict[str, Any] = {}
    if checkpoint.config != checkpoint.read_json("config.json"):
        changed[str(PurePosixPath(checkpoint.subfolder) / "config.json")] = checkpoint.config
    modules = checkpoint.read_module_json(MODULES)
    for module in modules if isinstance(modules, list) else ():
        file = f"{module['path']}/config.json"
        config = checkpoint.read_module_json(file) if str(module["type"]).rpartition(".")[2] == "Dense" else None
        # Later versions may say that there is no residual connection; that there is one was refused before.
        if config is not None and "use_residual" in config:
            changed[file] = {key: value for key, value in config.items() if key != "use_residual"}
    return changed
