"""Open a bundle as what its manifest says it is."""

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

    The classes themselves take options (`workers`, `threads`, `context`) and tell a type checker which it is. Raises
    NotFoundError where there is no bundle, and BundleError for one that is damaged.

        >>> with load(embedder_bundle) as model:
        ...     model.embed("Hello").shape
        (384,)
    """
    kind = (bundle if isinstance(bundle, Bundle) else Bundle.listed(bundle)).manifest.kind
    # Each imports what it runs with: a process that decodes does not wait for what embeds.
    if kind is Kind.EMBEDDER:
        from .encoder.embedder import Embedder  # noqa: PLC0415

        return Embedder(bundle)
    if kind is Kind.RERANKER:
        from .encoder.reranker import Reranker  # noqa: PLC0415

        return Reranker(bundle)
    from .decoder.decoder import Decoder  # noqa: PLC0415

    return Decoder(bundle)
