"""The options of an `ortkit embed` run, chunks of records, and range files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from ...runtime.errors import InputError, NotFoundError, TextError, TextTooLongError
from .inputs import InputFormat
from .writers import OutputFormat

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ...runtime.encoder.embedder import Embedder
    from ...runtime.encoder.embeddings import Embeddings

FIRST_CHUNK = 8
CHUNK_SECONDS = 1.0
GROWTH = 4.0
"""Largest growth of the chunk size from one chunk to the next."""


@dataclass(frozen=True)
class EmbedOptions:
    """Options that determine the output, with the bundle and the texts; a resumed run must have the same."""

    output_format: OutputFormat
    input_format: InputFormat
    field: str | None
    prompt: str | None
    dim: int | None
    dtype: str
    ranges_sha256: str | None
    long: str


@dataclass(frozen=True)
class EmbedRun:
    """An embedder with the options of a run."""

    embedder: Embedder
    options: EmbedOptions
    ranges: NDArray[np.float32] | None

    def embed(self, texts: Sequence[str], *, progress: Callable[[int], None] | None = None) -> Embeddings:
        options = self.options
        return self.embedder.embed_with_report(
            texts,
            prompt=options.prompt,
            dim=options.dim,
            dtype=options.dtype,
            ranges=self.ranges,
            long=options.long,
            progress=progress,
        )

    def placed(self, error: TextError, where: str) -> InputError:
        """The error for the text at this place of the input."""
        if isinstance(error, TextTooLongError):
            return self.too_long(where)
        return InputError(f"{where} {error.fault}", hint=error.hint)

    def too_long(self, where: str) -> TextTooLongError:
        """The error for the text at this place of the input."""
        return TextTooLongError(
            f"{where} is longer than the model's limit of {self.embedder.max_length} tokens",
            hint="split it, or use `--long truncate`, or `--long mean` to average the embeddings of its chunks",
        )


class Sized(Protocol):
    """A record with its size in the input."""

    @property
    def size(self) -> int: ...


SomeRecord = TypeVar("SomeRecord", bound=Sized)


def chunks_of(records: Iterable[SomeRecord]) -> Iterator[list[SomeRecord]]:
    """Yield chunks of records to embed together: 8 at first, then as many as take about a second, up to 1,024.

    Small chunks show and save progress early, large ones are faster, since a batch holds texts of equal length. When
    `records` raises, the records before are yielded first.
    """
    from ...runtime.encoder.base import CHUNK, CHUNK_CHARACTERS

    count = min(FIRST_CHUNK, CHUNK)
    chunk: list[SomeRecord] = []
    size = 0
    try:
        for record in records:
            chunk.append(record)
            size += record.size
            if len(chunk) < count and size < CHUNK_CHARACTERS:
                continue
            began = time.monotonic()
            yield chunk
            faster = CHUNK_SECONDS / max(time.monotonic() - began, 1e-9)
            count = max(1, min(CHUNK, int(len(chunk) * min(faster, GROWTH))))
            chunk, size = [], 0
    except Exception:
        if chunk:
            yield chunk
        raise
    if chunk:
        yield chunk


def read_ranges(path: Path) -> NDArray[np.float32]:
    """Read the ranges of int8 from an npy file; the embedder checks their shape."""
    import numpy as np

    try:
        with path.open("rb") as file:
            ranges = np.lib.format.read_array(file, allow_pickle=False)
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no file `{path}`") from error
    except ValueError as error:
        raise InputError(
            f"`{path}` is not an npy file", hint="`--ranges` takes the .ranges.npy file of a run with `--dtype int8`"
        ) from error
    if not np.issubdtype(ranges.dtype, np.number):
        raise InputError(f"`{path}` must hold numbers, not {ranges.dtype}")
    return np.asarray(ranges, np.float32)
