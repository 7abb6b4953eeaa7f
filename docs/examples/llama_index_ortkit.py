"""ortkit's embedder, reranker and index in LlamaIndex: `python llama_index_ortkit.py INDEX QUERY [RERANKER]`."""

import asyncio
import sys

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, TextNode

from ortkit import Embedder, Index, Reranker


class OrtkitEmbedding(BaseEmbedding):
    """Embeddings of a bundle; queries and texts get the prompts that the model has for them."""

    embedder: Embedder

    def __init__(self, embedder: Embedder, *, embed_batch_size: int = 512) -> None:
        name = embedder.bundle.manifest.name
        super().__init__(embedder=embedder, model_name=name, embed_batch_size=embed_batch_size)

    def _get_query_embedding(self, query: str) -> list[float]:
        return self.embedder.embed_query(query).tolist()

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self.embedder.embed_passages(texts).tolist()

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)


class OrtkitReranker(BaseNodePostprocessor):
    """Keeps the `top_n` nodes that a cross-encoder finds most relevant, best first."""

    reranker: Reranker
    top_n: int = 5

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise ValueError("reranking needs the query: give `query_bundle` or `query_str`")
        ranked = self.reranker.rank(
            query_bundle.query_str, nodes, text=lambda node: node.node.get_content(MetadataMode.NONE), top_n=self.top_n
        )
        return [NodeWithScore(node=one.document.node, score=one.score) for one in ranked]


class OrtkitRetriever(BaseRetriever):
    """Searches an index: BM25 and vectors, fused, then reranked if there is a reranker."""

    def __init__(
        self, index: Index, *, reranker: Reranker | None = None, top_n: int = 5, paths: tuple[str, ...] = ()
    ) -> None:
        super().__init__()
        self.index, self.reranker, self.top_n, self.paths = index, reranker, top_n, paths

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        hits = self.index.search(query_bundle.query_str, top_n=self.top_n, paths=self.paths, reranker=self.reranker)
        return [
            NodeWithScore(
                node=TextNode(
                    text=hit.text,
                    metadata={
                        "file_path": hit.file,
                        "title": hit.title,
                        "page": hit.place.page,
                        "lines": hit.place.lines,
                        "headings": hit.place.headings,
                    },
                ),
                score=hit.score,
            )
            for hit in hits
        ]


def main(index: str, query: str, reranker: str | None = None) -> None:
    retriever = OrtkitRetriever(Index.open(index), reranker=Reranker(reranker) if reranker else None)
    for found in retriever.retrieve(query):
        print(f"{found.score:.4f}  {found.node.metadata['file_path']}: {found.node.get_content()[:90]}")


if __name__ == "__main__":
    if len(sys.argv) not in {3, 4}:
        sys.exit(f"usage: {__doc__}")
    main(*sys.argv[1:])
