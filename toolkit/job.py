"""What a run of `edgekit embed` does to its texts, whether they come through a pipe or fill a file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from runtime.errors import InputError, NotFoundError, TextError, TextTooLongError
from toolkit.inputs import InputFormat
from toolkit.writers import OutputFormat

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from runtime.embedder import Embedder
    from runtime.results import Embeddings

FIRST_CHUNK = 8
CHUNK_SECONDS = 1.0
GROWTH = 4.0
"""How many times as many records the next chunk may have."""


@dataclass(frozen=True)
class Options:
    """What decides the content of an output, beside the bundle and the texts."""

    output_format: OutputFormat
    input_format: InputFormat
    field: str | None
    prompt: str | None
    dim: int | None
    dtype: str
    ranges_sha256: str | None
    long: str


@dataclass(frozen=True)
class Job:
    """An embedder and how it is used."""

    embedder: Embedder
    options: Options
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
        """The error for a text that stood there in the input."""
        if isinstance(error, TextTooLongError):
            return self.too_long(where)
        return InputError(f"{where} {error.fault}", hint=error.hint)

    def too_long(self, where: str) -> TextTooLongError:
        """The error for a text that stood there in the input."""
        return TextTooLongError(
            f"{where} is longer than the {self.embedder.max_length} tokens that the model reads",
            hint="split it, or choose `--long truncate` to have it cut or `--long mean` to have it read in chunks",
        )


class Sized(Protocol):
    """What a chunk is made of."""

    @property
    def size(self) -> int: ...


SomeRecord = TypeVar("SomeRecord", bound=Sized)


def chunks_of(records: Iterable[SomeRecord]) -> Iterator[list[SomeRecord]]:
    """Records that are embedded together: few at first, then as many as take about a second, up to 1,024.

    So what is done is seen and kept soon, however slow the model is; more at once are faster, since batches hold texts
    of one length. When `records` raises, what it gave before comes first, and then the error.
    """
    from runtime.encoder import CHUNK, CHUNK_CHARACTERS

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
    """The ranges of int8 from an npy file; the embedder checks whether they fit."""
    import numpy as np

    try:
        with path.open("rb") as file:
            ranges = np.lib.format.read_array(file, allow_pickle=False)
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no file `{path}`") from error
    except ValueError as error:
        raise InputError(
            f"`{path}` is no npy file", hint="`--ranges` takes the file that a run with `--dtype int8` left"
        ) from error
    if not np.issubdtype(ranges.dtype, np.number):
        raise InputError(f"`{path}` holds no numbers but {ranges.dtype}")
    return np.asarray(ranges, np.float32)
