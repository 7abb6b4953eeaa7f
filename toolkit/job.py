"""What a run of `edgekit embed` does to its texts, whether they come through a pipe or fill a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import InputError, NotFoundError, TextError, TextTooLongError
from toolkit.texts import InputFormat
from toolkit.writers import OutputFormat

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from runtime.embedder import Embedder
    from runtime.results import Embeddings


@dataclass(frozen=True)
class Options:
    """What decides the content of an output, beside the bundle and the texts."""

    output_format: OutputFormat
    input_format: InputFormat
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

    def embed(self, texts: Sequence[str]) -> Embeddings:
        options = self.options
        return self.embedder.embed_with_report(
            texts, prompt=options.prompt, dim=options.dim, dtype=options.dtype, ranges=self.ranges, long=options.long
        )

    def stream(self, texts: Iterable[str]) -> Iterator[Embeddings]:
        options = self.options
        return self.embedder.stream(
            texts, prompt=options.prompt, dim=options.dim, dtype=options.dtype, ranges=self.ranges, long=options.long
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
