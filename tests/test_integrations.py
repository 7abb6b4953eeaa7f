"""The adapters for LangChain and LlamaIndex in `docs/examples`, in the real libraries, and LangChain's chat model."""

from __future__ import annotations

import asyncio
import importlib.util
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import httpx
import numpy as np
import openai
import pytest
from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import MetadataMode, NodeWithScore, TextNode

from ortkit import Embedder, Index, Reranker
from ortkit.toolkit.server.operation.metrics import Metrics
from ortkit.toolkit.server.served.models import ServedModels
from ortkit.toolkit.server.settings import ServerSettings
from tests.decoders import write_decoder
from tests.test_docs import DOCS, run_example
from tests.tiny_bundles import write_embedder, write_reranker
from tests.toolkit.server.conftest import LocalServer, running

EXAMPLES = DOCS / "examples"
TEXTS = ["The quick brown fox", "jumps over the lazy dog", "and the dog sleeps"]
QUERY = "fox"
MANUAL = "# Pump\n\nThe pump is primed by hand.\n\n# Knots\n\nWet rope shrinks, and a bowline holds.\n"
NOTES = "The quick brown fox jumps over the lazy dog.\n"


def example(name: str) -> ModuleType:
    """A module of the examples."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Pydantic looks the names of annotations up there.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return {
        "tiny-embedder": write_embedder(folder / "embedder").path,
        "tiny-reranker": write_reranker(folder / "reranker").path,
        "tiny-decoder": write_decoder(folder / "decoder")[0].path,
    }


@pytest.fixture(scope="module")
def embedder(bundles: dict[str, Path]) -> Embedder:
    return Embedder(bundles["tiny-embedder"])


@pytest.fixture(scope="module")
def reranker(bundles: dict[str, Path]) -> Reranker:
    return Reranker(bundles["tiny-reranker"])


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, embedder: Embedder) -> Iterator[Index]:
    folder = tmp_path_factory.mktemp("indexed")
    (folder / "manuals").mkdir()
    (folder / "manuals" / "pump.md").write_text(MANUAL, "utf-8")
    (folder / "notes.txt").write_text(NOTES, "utf-8")
    with Index.build(folder.with_suffix(".index"), folder, embedder) as built:
        yield built


@pytest.fixture(scope="module")
def server(bundles: dict[str, Path]) -> Iterator[LocalServer]:
    settings, metrics = ServerSettings(slots=2, threads=1), Metrics()
    models = ServedModels.open(bundles, settings, metrics)
    with running(models, settings, metrics) as found:
        yield found
    models.close()


@pytest.fixture(scope="module")
def langchain() -> ModuleType:
    return example("langchain_ortkit")


@pytest.fixture(scope="module")
def llama_index() -> ModuleType:
    return example("llama_index_ortkit")


def by_similarity(embedder: Embedder, query: str) -> list[str]:
    similar = embedder.embed_passages(TEXTS) @ embedder.embed_query(query)
    return [TEXTS[place] for place in np.argsort(-similar)]


def test_embeddings_in_langchain(langchain: ModuleType, embedder: Embedder) -> None:
    embeddings = langchain.OrtkitEmbeddings(embedder)

    assert embeddings.embed_documents(TEXTS) == embedder.embed_passages(TEXTS).tolist()
    assert embeddings.embed_query(QUERY) == embedder.embed_query(QUERY).tolist() != embedder.embed(QUERY).tolist()
    assert asyncio.run(embeddings.aembed_query(QUERY)) == embeddings.embed_query(QUERY)
    store = InMemoryVectorStore.from_texts(TEXTS, embeddings)
    assert [found.page_content for found in store.similarity_search(QUERY, k=3)] == by_similarity(embedder, QUERY)


def test_a_document_compressor_of_langchain_reranks(langchain: ModuleType, reranker: Reranker) -> None:
    documents = [Document(page_content=text, metadata={"row": row}) for row, text in enumerate(TEXTS)]
    compressor = langchain.OrtkitReranker(reranker=reranker, top_n=2)

    found = compressor.compress_documents(documents, QUERY)

    expected = [(one.document, one.index, one.score) for one in reranker.rank(QUERY, TEXTS, top_n=2)]
    shown = [(one.page_content, one.metadata["row"], one.metadata["relevance_score"]) for one in found]
    assert shown == expected
    assert [document.metadata for document in documents] == [{"row": row} for row in range(3)]
    assert asyncio.run(compressor.acompress_documents(documents, QUERY)) == found
    assert compressor.compress_documents([], QUERY) == []


def test_a_retriever_of_langchain_searches_an_index(langchain: ModuleType, index: Index, reranker: Reranker) -> None:
    for own in (None, reranker):
        found = langchain.OrtkitRetriever(index=index, reranker=own, top_n=2).invoke("bowline rope")

        hits = index.search("bowline rope", top_n=2, reranker=own)
        assert [(one.page_content, one.metadata["source"], one.metadata["score"]) for one in found] == [
            (hit.text, hit.file, hit.score) for hit in hits
        ]
    only = langchain.OrtkitRetriever(index=index, paths=("manuals/*",)).invoke("bowline rope")
    assert {one.metadata["source"] for one in only} == {"manuals/pump.md"}
    assert any(one.metadata["headings"] == ("Knots",) and one.metadata["lines"] == (7, 7) for one in only)


def test_embeddings_in_llama_index(llama_index: ModuleType, embedder: Embedder) -> None:
    embedding = llama_index.OrtkitEmbedding(embedder)

    assert embedding.model_name == "tiny-embedder"
    assert embedding.get_text_embedding_batch(TEXTS) == embedder.embed_passages(TEXTS).tolist()
    assert embedding.get_text_embedding(TEXTS[0]) == embedder.embed_passages(TEXTS[:1])[0].tolist()
    assert (
        embedding.get_query_embedding(QUERY) == embedder.embed_query(QUERY).tolist() != embedder.embed(QUERY).tolist()
    )
    assert asyncio.run(embedding.aget_query_embedding(QUERY)) == embedding.get_query_embedding(QUERY)
    assert asyncio.run(embedding.aget_text_embedding(TEXTS[0])) == embedding.get_text_embedding(TEXTS[0])
    assert asyncio.run(embedding.aget_text_embedding_batch(TEXTS)) == embedding.get_text_embedding_batch(TEXTS)
    vectors = VectorStoreIndex([TextNode(text=text) for text in TEXTS], embed_model=embedding)
    found = vectors.as_retriever(similarity_top_k=3).retrieve(QUERY)
    assert [one.node.get_content() for one in found] == by_similarity(embedder, QUERY)


def test_a_node_postprocessor_of_llama_index_reranks(llama_index: ModuleType, reranker: Reranker) -> None:
    nodes = [NodeWithScore(node=TextNode(text=text, metadata={"row": text[:3]}), score=0.5) for text in TEXTS]
    postprocessor = llama_index.OrtkitReranker(reranker=reranker, top_n=2)

    found = postprocessor.postprocess_nodes(nodes, query_str=QUERY)

    expected = [(one.document, one.score) for one in reranker.rank(QUERY, TEXTS, top_n=2)]
    assert [(one.node.get_content(MetadataMode.NONE), one.score) for one in found] == expected
    assert [one.score for one in nodes] == [0.5] * 3
    assert asyncio.run(postprocessor.apostprocess_nodes(nodes, query_str=QUERY)) == found
    with pytest.raises(ValueError, match="reranking needs the query"):
        postprocessor.postprocess_nodes(nodes)


def test_a_retriever_of_llama_index_searches_an_index(
    llama_index: ModuleType, index: Index, reranker: Reranker
) -> None:
    for own in (None, reranker):
        found = llama_index.OrtkitRetriever(index, reranker=own, top_n=2).retrieve("bowline rope")

        hits = index.search("bowline rope", top_n=2, reranker=own)
        assert [(one.node.get_content(), one.node.metadata["file_path"], one.score) for one in found] == [
            (hit.text, hit.file, hit.score) for hit in hits
        ]
    only = llama_index.OrtkitRetriever(index, paths=("notes.txt",)).retrieve("bowline rope")
    assert [one.node.metadata["file_path"] for one in only] == ["notes.txt"]
    assert only[0].node.metadata["lines"] == (1, 1)


@pytest.mark.parametrize("name", ["langchain_ortkit.py", "llama_index_ortkit.py"])
def test_the_adapters_run_as_programs(name: str, index: Index, bundles: dict[str, Path]) -> None:
    shown = run_example(name, index.facts.path, "bowline rope", bundles["tiny-reranker"])

    hits = index.search("bowline rope", reranker=Reranker(bundles["tiny-reranker"]))
    assert [line.split()[:2] for line in shown.splitlines()] == [[f"{hit.score:.4f}", f"{hit.file}:"] for hit in hits]


def test_langchains_chat_model_talks_to_the_server(server: LocalServer) -> None:
    chat = ChatOpenAI(base_url=f"{server.url}/v1", api_key="none", model="tiny-decoder", temperature=0, max_tokens=9)

    answer = chat.invoke([("system", "quick brown"), ("human", QUERY)])
    pieces = list(chat.stream([("system", "quick brown"), ("human", QUERY)]))

    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        reference = client.chat.completions.create(
            model="tiny-decoder",
            messages=[{"role": "system", "content": "quick brown"}, {"role": "user", "content": QUERY}],
            temperature=0,
            max_completion_tokens=9,
        )
    assert answer.content == reference.choices[0].message.content != ""
    assert "".join(piece.content for piece in pieces) == answer.content
    assert len([piece for piece in pieces if piece.content]) > 1
    assert reference.usage is not None
    assert answer.usage_metadata["total_tokens"] == reference.usage.total_tokens


def test_a_chain_of_langchain_answers_from_an_index(langchain: ModuleType, server: LocalServer, index: Index) -> None:
    asked = []

    def joined(documents: list[Document]) -> str:
        asked.extend(documents)
        return "\n\n".join(document.page_content for document in documents)

    chat = ChatOpenAI(base_url=f"{server.url}/v1", api_key="none", model="tiny-decoder", temperature=0, max_tokens=5)
    prompt = ChatPromptTemplate.from_template("{context}\n{question}")
    retriever = langchain.OrtkitRetriever(index=index, top_n=1)
    sources = {"context": retriever | joined, "question": RunnablePassthrough()}

    answer = (sources | prompt | chat | StrOutputParser()).invoke(QUERY)

    [hit] = index.search(QUERY, top_n=1)
    assert [document.page_content for document in asked] == [hit.text]
    assert answer == chat.invoke(f"{hit.text}\n{QUERY}").content != ""


def test_langchains_embeddings_client_talks_to_the_server(server: LocalServer, embedder: Embedder) -> None:
    """With `check_embedding_ctx_length` it would fetch OpenAI's tokenizer, and send its ids instead of texts."""
    client = OpenAIEmbeddings(
        base_url=f"{server.url}/v1", api_key="none", model="tiny-embedder", check_embedding_ctx_length=False
    )

    assert np.array_equal(np.array(client.embed_documents(TEXTS), np.float32), embedder.embed(TEXTS))
    assert np.array_equal(np.array(client.embed_query(QUERY), np.float32), embedder.embed(QUERY))


def test_no_other_host_was_named(server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even looked up: LangSmith's tracing and OpenAI's tokenizer would ask for one."""
    looked_up = []
    find = socket.getaddrinfo

    def recorded(host: object, *arguments: object, **keywords: object) -> object:
        looked_up.append(host)
        return find(host, *arguments, **keywords)

    monkeypatch.setattr(socket, "getaddrinfo", recorded)
    with httpx.Client() as client:  # not LangChain's, which may still be connected
        chat = ChatOpenAI(
            base_url=f"{server.url}/v1", api_key="none", model="tiny-decoder", max_tokens=3, http_client=client
        )
        chat.invoke(QUERY)

    assert set(looked_up) == {"127.0.0.1"}
