"""Errors of the libraries that run a checkpoint, reported as what they are: of the checkpoint, or of the machine."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from ...runtime.errors import CheckpointError, OrtkitError
from ..printable import printable

_NO_MEMORY = "DefaultCPUAllocator"
"""In the RuntimeError that PyTorch raises where it cannot allocate memory; it has no class of its own on the CPU."""
_OF_CHECKPOINT = frozenset({None, errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EINVAL})
"""What an OSError of a checkpoint's files has as `errno`; the libraries' own have none. Others are of the machine."""
_LONGEST = 500
"""Characters of a reason."""


@contextmanager
def library_errors(message: str) -> Iterator[None]:
    """Raise CheckpointError, `message` with the reason, for whatever a library makes of a checkpoint.

    transformers, sentence-transformers and PyTorch raise whatever damaged files, or settings that do not go together,
    make of their code. What the checkpoint is not the cause of stays what it is: OSError for a full disk, MemoryError.

        >>> with library_errors("`model` cannot be loaded"):
        ...     transformers.AutoModel.from_pretrained("model")
    """
    try:
        yield
    except (OrtkitError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in _OF_CHECKPOINT:
            raise
        if isinstance(error, RuntimeError) and _NO_MEMORY in str(error):
            raise MemoryError(str(error)) from error
        reason = printable(" ".join(str(error).split()) or type(error).__name__, _LONGEST)
        raise CheckpointError(f"{message}: {reason}") from error
