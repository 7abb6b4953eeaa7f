from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cohere
import httpx
import openai
import pytest
import uvicorn

from ortkit import Bundle
from ortkit.toolkit.search.index import Index
from ortkit.toolkit.server.app import create_app
from ortkit.toolkit.server.operation.metrics import Metrics
from ortkit.toolkit.server.served.indexes import ServedIndexes
from ortkit.toolkit.server.served.models import ServedModels
from ortkit.toolkit.server.settings import ServerSettings
from tests.decoders import write_decoder
from tests.tiny_bundles import rehash, write_embedder, write_reranker

LIMIT = 4096
"""Of the tiny embedder and reranker, in tokens."""
LONG = "the lazy dog " * 1500
"""A text with more tokens."""


@dataclass(frozen=True)
class LocalServer:
    """A server on the loopback, in a thread of this process."""

    url: str
    models: ServedModels
    metrics: Metrics
    settings: ServerSettings

    connection: httpx.Client

    def post(self, path: str, body: object) -> httpx.Response:
        return self.connection.post(path, json=body)

    def get(self, path: str) -> httpx.Response:
        return self.connection.get(path)


@contextmanager
def running(
    models: ServedModels, settings: ServerSettings, metrics: Metrics, indexes: ServedIndexes | None = None
) -> Iterator[LocalServer]:
    config = uvicorn.Config(
        create_app(models, settings, metrics, indexes),
        host="127.0.0.1",
        port=0,
        log_level="warning",
        lifespan="off",
        ws="none",
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    try:
        with httpx.Client(base_url=url, timeout=60) as connection:
            yield LocalServer(url, models, metrics, settings, connection)
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny bundle of each kind."""
    folder = tmp_path_factory.mktemp("served")

    def with_limit(bundle: Bundle) -> Path:
        """More than texts made at random have."""
        rehash(bundle.path, lambda manifest: manifest["tokenizer"].update(max_length=LIMIT))
        return bundle.path

    return {
        "tiny-embedder": with_limit(write_embedder(folder / "embedder")),
        "tiny-reranker": with_limit(write_reranker(folder / "reranker")),
        "tiny-decoder": write_decoder(folder / "decoder")[0].path,
    }


MANUALS = {
    "pumps.md": """# Pumps

The pump does not start where the fuse is broken.

## Starting by hand

Turn the crank and open the valve, then the quick brown fox jumps.
""",
    "dogs/lazy.txt": "The lazy dog sleeps in the sun.\n\nThe quick brown fox jumps over the lazy dog.\n",
    "dogs/[odd] * name?.txt": "A fox with an odd name.\n",
    os.fsdecode(b"caf\xe9.txt"): "Coffee for the fox, whose file has a name that is not UTF-8.\n",
}
"""Name -> text of the files of the index."""


def write_folder(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture(scope="session")
def manuals(bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of a few files."""
    folder = tmp_path_factory.mktemp("manuals")
    path = folder / "manuals.index"
    with Index.build(path, write_folder(folder / "manuals", MANUALS), bundles["tiny-embedder"]):
        return path


@pytest.fixture(scope="session")
def server(bundles: dict[str, Path], manuals: Path) -> Iterator[LocalServer]:
    """A server with a tiny bundle of each kind, and an index."""
    settings, metrics = ServerSettings(slots=4, threads=1, max_inputs=100), Metrics()
    models = ServedModels.open(bundles, settings, metrics)
    indexes = ServedIndexes.open({"manuals": manuals}, models, settings, metrics)
    with running(models, settings, metrics, indexes) as found:
        yield found
    indexes.close()
    models.close()


@pytest.fixture(scope="session")
def client(server: LocalServer) -> Iterator[openai.OpenAI]:
    """OpenAI's client, which raises for a field of another type than in their API."""
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60, _strict_response_validation=True
    ) as found:
        yield found


@pytest.fixture(scope="session")
def lenient_client(server: LocalServer) -> Iterator[openai.OpenAI]:
    """As it is by default: it asks for embeddings in base64, which its strict validation refuses."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as found:
        yield found


@pytest.fixture(scope="session")
def cohere_client(server: LocalServer) -> Iterator[cohere.ClientV2]:
    with httpx.Client(timeout=60) as connection:
        yield cohere.ClientV2(api_key="none", base_url=server.url, httpx_client=connection)
