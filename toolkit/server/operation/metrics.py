"""What `/metrics` shows, for Prometheus: names and buckets after vLLM's, with `ortkit_` for `vllm:`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import prometheus_client
from prometheus_client import (
    CollectorRegistry,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from ....runtime.decoder.generation import Rates
from ....runtime.version import __version__
from . import request_record

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""The version that every Prometheus reads; with names of ASCII, later ones are the same."""
OTHER = "other"
"""The endpoint of requests to paths that the server does not have: their number has no bound."""
_FIRST_TOKEN = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
_PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
_LATENCY = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 20, 30, 60, 120, 240, 480, 960)
_BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_BATCH_TOKENS = (16, 64, 256, 1024, 2048, 4096, 8192, 16384, 32768)


class Metrics:
    """Counters, histograms and gauges of one server, in a registry of its own. Thread-safe."""

    def __init__(self) -> None:
        # Half of all series would be the time when a counter was made.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._done: Counter[str] = Counter()
        ProcessCollector(registry=self.registry)
        self._info = Gauge("ortkit_info", "Version of ortkit.", ("version",), registry=self.registry)
        self._info.labels(__version__).set(1)
        self._requests = self._counter("http_requests", "Requests by endpoint and status.", "endpoint", "status")
        self._latency = self._histogram(
            "e2e_request_latency_seconds", "From a request's headers to the end of its answer.", _LATENCY, "endpoint"
        )
        self._open = self._gauge("num_requests_open", "Requests that have no complete answer yet.")
        self._connections = self._gauge("num_connections", "Connections that are open.")
        self._running = self._gauge("num_requests_running", "Answers that are being computed.", "model_name")
        self._waiting = self._gauge("num_requests_waiting", "Requests that wait for a model.", "model_name")
        self._first = self._histogram(
            "time_to_first_token_seconds", "Time to first token, with the wait.", _FIRST_TOKEN, "model_name"
        )
        self._per_token = self._histogram(
            "time_per_output_token_seconds", "Mean time between an answer's tokens.", _PER_TOKEN, "model_name"
        )
        self._prompt = self._counter("prompt_tokens", "Tokens of prompts and of embedded texts.", "model_name")
        self._generated = self._counter("generation_tokens", "Tokens of answers.", "model_name")
        self._hits = self._counter("prefix_cache_hits", "Prompt tokens that were in the prefix cache.", "model_name")
        self._queries = self._counter(
            "prefix_cache_queries", "Prompt tokens that were looked up in the prefix cache.", "model_name"
        )
        self._prefix_bytes = self._gauge("prefix_cache_bytes", "Bytes of the prefix cache.", "model_name")
        self._ended = self._counter("request_success", "Answers by their end.", "model_name", "finished_reason")
        self._batch = self._histogram("encoder_batch_size", "Texts or pairs of a batch.", _BATCH, "model_name")
        self._batch_tokens = self._histogram(
            "encoder_batch_tokens", "Tokens of a batch, with padding.", _BATCH_TOKENS, "model_name"
        )
        self._reloads = self._counter("reloads", "Reloads of keys, bundles and indexes, by result.", "what", "result")
        self._search = self._histogram(
            "search_latency_seconds", "Searches in an index, with the wait for a thread.", _LATENCY, "index_name"
        )
        self._chunks = self._gauge("index_chunks", "Chunks of an index.", "index_name")
        self._searching = self._gauge("num_searches_running", "Searches that have a thread.")
        self._to_search = self._gauge("num_searches_waiting", "Searches that wait for a thread.")

    def request(self, endpoint: str, status: int, seconds: float) -> None:
        """Count a request; `endpoint` is one of the server's paths, or OTHER."""
        self._requests.labels(endpoint, str(status)).inc()
        self._latency.labels(endpoint).observe(seconds)

    def request_opened(self) -> None:
        """Count a request that has arrived."""
        self._open.inc()

    def request_closed(self) -> None:
        """Count a request whose answer is complete, or whose client has gone."""
        self._open.dec()

    def answer(self, model: str, rates: Rates, finish_reason: str, *, waited: float = 0.0) -> None:
        """Count an answer of an LLM; `waited` is the time in the queue, in seconds, which `rates` leaves out."""
        request_record.note(model=model, finish_reason=finish_reason)
        request_record.count(
            prompt_tokens=rates.prompt_tokens, cached_tokens=rates.cached_tokens, answer_tokens=rates.new_tokens
        )
        self._prompt.labels(model).inc(rates.prompt_tokens)
        self._queries.labels(model).inc(rates.prompt_tokens)
        self._hits.labels(model).inc(rates.cached_tokens)
        self._generated.labels(model).inc(rates.new_tokens)
        if rates.new_tokens:
            self._first.labels(model).observe(waited + rates.first_token_seconds)
        if rates.new_tokens > 1:
            self._per_token.labels(model).observe(rates.new_seconds / (rates.new_tokens - 1))
        self._ended.labels(model, finish_reason).inc()

    def encoded(self, model: str, tokens: int) -> None:
        """Count the tokens of a request for embeddings or scores."""
        request_record.note(model=model)
        request_record.count(prompt_tokens=tokens)
        self._prompt.labels(model).inc(tokens)

    def encoder_batch(self, model: str, texts: int, tokens: int) -> None:
        """Count a batch that an encoder has computed."""
        self._done[model] += 1
        self._batch.labels(model).observe(texts)
        self._batch_tokens.labels(model).observe(tokens)

    def batches(self, model: str) -> int:
        """How many batches an encoder has computed."""
        return self._done[model]

    def watch(
        self,
        model: str,
        *,
        running: Callable[[], float] | None = None,
        waiting: Callable[[], float] | None = None,
        prefix_bytes: Callable[[], float] | None = None,
    ) -> None:
        """Ask these functions at each scrape; a second call for the same model replaces them."""
        for gauge, read in ((self._running, running), (self._waiting, waiting), (self._prefix_bytes, prefix_bytes)):
            if read is not None:
                gauge.labels(model).set_function(read)

    def watch_connections(self, count: Callable[[], float]) -> None:
        """Ask for the number of open connections at each scrape."""
        self._connections.set_function(count)

    def searched(self, index: str, results: int, seconds: float) -> None:
        """Count a search in an index."""
        request_record.note(index=index)
        request_record.count(results=results)
        self._search.labels(index).observe(seconds)

    def watch_index(self, index: str, *, chunks: Callable[[], float]) -> None:
        """Ask for the size of an index at each scrape."""
        self._chunks.labels(index).set_function(chunks)

    def watch_searches(self, *, running: Callable[[], float], waiting: Callable[[], float]) -> None:
        """Ask for the number of searches at each scrape."""
        self._searching.set_function(running)
        self._to_search.set_function(waiting)

    def reloaded(self, what: str, *, worked: bool) -> None:
        """Count a reload of `keys`, `bundle` or `index`."""
        self._reloads.labels(what, "success" if worked else "failure").inc()

    def render(self) -> bytes:
        """All values in Prometheus's text format, of CONTENT_TYPE."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> prometheus_client.Counter:
        return prometheus_client.Counter(f"ortkit_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"ortkit_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"ortkit_{name}", text, labels, registry=self.registry, buckets=buckets)
