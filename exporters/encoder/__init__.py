"""Export of embedders and rerankers."""
