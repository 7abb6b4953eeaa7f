"""Embed and rerank tables of pyarrow on engines for bulk jobs, such as Ray Data and Spark (extra `arrow`)."""

from .toolkit.bulk.embed import Embed
from .toolkit.bulk.rerank import Rerank

__all__ = ["Embed", "Rerank"]
