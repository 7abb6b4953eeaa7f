"""Open a bundle with the class for its kind."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .bundle.bundle import Bundle
from .bundle.manifest import Kind

if TYPE_CHECKING:
    from .decoder.decoder import Decoder
    from .encoder.embedder import Embedder
    from .encoder.reranker import Reranker


def load(bundle: Bundle | str | os.PathLike[str]) -> Embedder | Reranker | Decoder:
    """Open a bundle as an `Embedder`, a `Reranker` or a `Decoder`, by the kind in its manifest.

    For scripts and notebooks. In typed code use the class: a type checker cannot know the kind of a bundle, and only
    the classes take options (`workers`, `threads`, `context`). Raises NotFoundError, BundleError for a damaged bundle,
    ProviderError and OutOfMemoryError.

        >>> with load(embedder_bundle) as model:
        ...     model.embed("Hello").shape
        (384,)
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    kind = bundle.manifest.kind
    # Import only the class that is needed, which makes the start faster.
    if kind is Kind.EMBEDDER:
        from .encoder.embedder import Embedder  # noqa: PLC0415

        return Embedder(bundle)
    if kind is Kind.RERANKER:
        from .encoder.reranker import Reranker  # noqa: PLC0415

        return Reranker(bundle)
    from .decoder.decoder import Decoder  # noqa: PLC0415

    return Decoder(bundle)
