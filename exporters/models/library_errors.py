"""Errors of the libraries that run a checkpoint, reported as what they are: of the checkpoint, or of the machine."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from ...runtime.errors import CheckpointError, OrtkitError

_NO_MEMORY = "DefaultCPUAllocator"
"""In the RuntimeError that PyTorch raises where it cannot allocate memory."""
_OF_MACHINE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EROFS})
"""Errors of a disk, or of limits, and not of what is read from it."""


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
        if isinstance(error, OSError) and error.errno in _OF_MACHINE:
            raise
        if isinstance(error, RuntimeError) and _NO_MEMORY in str(error):
            raise MemoryError(str(error)) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{message}: {reason}") from error
