"""ortkit's embedder, reranker and index in LangChain: `python langchain_ortkit.py INDEX QUERY [RERANKER]`."""

import sys
from collections.abc import Sequence

from langchain_core.callbacks import CallbackManagerForRetrieverRun, Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict

from ortkit import Embedder, Index, Reranker


class OrtkitEmbeddings(Embeddings):
    """Embeddings of a bundle; queries and documents get the prompts that the model has for them."""

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self.embedder.embed_passages(texts).tolist()

    def embed_query(self, text: str) -> list[float]:
        return self.embedder.embed_query(text).tolist()


class OrtkitReranker(BaseDocumentCompressor):
    """Keeps the `top_n` documents that a cross-encoder finds most relevant, best first."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    reranker: Reranker
    top_n: int = 5

    def compress_documents(
        self,
        documents: Sequence[Document],
        query: str,
        callbacks: Callbacks | None = None,  # noqa: ARG002
    ) -> list[Document]:
        ranked = self.reranker.rank(query, documents, text=lambda document: document.page_content, top_n=self.top_n)
        return [
            one.document.model_copy(update={"metadata": {**one.document.metadata, "relevance_score": one.score}})
            for one in ranked
        ]


class OrtkitRetriever(BaseRetriever):
    """Searches an index: BM25 and vectors, fused, then reranked if there is a reranker."""

    index: Index
    reranker: Reranker | None = None
    top_n: int = 5
    paths: tuple[str, ...] = ()

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:  # noqa: ARG002
        hits = self.index.search(query, top_n=self.top_n, paths=self.paths, reranker=self.reranker)
        return [
            Document(
                page_content=hit.text,
                metadata={
                    "source": hit.file,
                    "title": hit.title,
                    "page": hit.place.page,
                    "lines": hit.place.lines,
                    "headings": hit.place.headings,
                    "score": hit.score,
                },
            )
            for hit in hits
        ]


def main(index: str, query: str, reranker: str | None = None) -> None:
    retriever = OrtkitRetriever(index=Index.open(index), reranker=Reranker(reranker) if reranker else None)
    for document in retriever.invoke(query):
        print(f"{document.metadata['score']:.4f}  {document.metadata['source']}: {document.page_content[:90]}")


if __name__ == "__main__":
    if len(sys.argv) not in {3, 4}:
        sys.exit(f"usage: {__doc__}")
    main(*sys.argv[1:])
