"""What `ortkit inspect` prints of a bundle and of its plan on this machine, in lines: (label, text)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...runtime.bundle.manifest import CacheType, Kind, PrefillChoice, Provider
from ...runtime.sizes import mebibytes, megabytes

if TYPE_CHECKING:
    from ...runtime.bundle.manifest import DecoderFacts, Manifest, Quantization, Source
    from ...runtime.decoder.decoder import DecoderPlan
    from ...runtime.decoder.memory_estimate import Footprint
    from ...runtime.encoder.base import Plan

_PROBED = {Kind.EMBEDDER: "texts", Kind.RERANKER: "queries", Kind.DECODER: "tokens"}


def describe_plan(plan: Plan) -> list[tuple[str, str]]:
    """The plan of an encoder on this machine in lines: (label, text)."""
    disabled = ", ".join(plan.disabled_optimizers) or "none"
    int8 = []
    if plan.int8 is not None:
        features = f"; CPU features: {', '.join(plan.int8.features)}" if plan.int8.features else ""
        int8.append(("int8", f"{plan.int8.reason}{features}"))
    return [
        ("CPU", plan.cpu_class.description),
        ("workers", _workers_of(plan)),
        ("batches", f"up to {plan.batch_tokens} tokens, {_padding_of(plan)}"),
        ("runs on", f"{plan.provider.value}, onnxruntime {plan.onnxruntime}; disabled graph optimizers: {disabled}"),
        *int8,
        *_limit_of(plan),
    ]


def _limit_of(plan: Plan) -> list[tuple[str, str]]:
    """The limit on the memory in lines."""
    if plan.max_memory is None:
        return []
    fits = "" if plan.fits is None else f"; there is room for texts of {plan.fits} tokens"
    return [("limit", f"{mebibytes(plan.max_memory)}{fits}")]


def _padding_of(plan: Plan) -> str:
    if plan.buckets is None:
        return "texts of equal length, no padding"
    texts, tokens = (", ".join(map(str, sizes)) for sizes in (plan.buckets.texts, plan.buckets.tokens))
    return f"padded to {texts} texts of {tokens} tokens"


def _workers_of(plan: Plan) -> str:
    if plan.provider is Provider.CPU:
        return f"{plan.workers}, one CPU core each: {plan.cores.reason}"
    return f"{plan.workers}: a batch takes the whole device"


_PREFILLS = {
    PrefillChoice.INT8: "through the 8-bit graph for prompts",
    PrefillChoice.NONE: "through the graph that decodes",
}


def describe_decoder_plan(plan: DecoderPlan) -> list[tuple[str, str]]:
    """The plan of a decoder on this machine in lines: (label, text)."""
    fits = "the whole context" if plan.fits >= plan.context else f"{plan.fits} of {plan.context} tokens"
    room = "the free memory has" if plan.max_memory is None else f"the limit of {mebibytes(plan.max_memory)} has"
    return [
        ("CPU", plan.cpu_class.description),
        ("threads", f"{plan.threads}: {plan.cores.reason}"),
        ("prompts", _PREFILLS[plan.prefill]),
        ("fits", f"{fits}: the KV cache that {room} room for now"),
        ("runs on", f"{plan.provider.value}, onnxruntime {plan.onnxruntime}"),
    ]


def _describe_footprint(footprint: Footprint, provider: Provider) -> list[tuple[str, str]]:
    """The memory of a decoder in lines: (label, text)."""
    caches = ", ".join(f"{mebibytes(length.cache)} for {length.tokens} tokens" for length in footprint.lengths)
    totals = ", ".join(f"{mebibytes(length.total)} for {length.tokens}" for length in footprint.lengths)
    size = mebibytes(footprint.prefill_weights)
    prefill = f", of them {size} of the 8-bit graph for prompts" if footprint.prefill_weights else ""
    beside = "with libraries and the prefill of a long prompt"
    if provider is not Provider.CPU:
        beside = "of GPU memory; the provider's libraries and the prefill of a prompt take more"
    return [
        ("memory", f"weights {mebibytes(footprint.weights)}{prefill}, KV cache {caches}"),
        ("total", f"about {totals}, {beside}"),
    ]


def describe_decoder(
    facts: DecoderFacts, footprint: Footprint, provider: Provider = Provider.CPU
) -> list[tuple[str, str]]:
    """A decoder's facts in lines: (label, text)."""
    window = f", sliding window of {facts.sliding_window}" if facts.sliding_window is not None else ""
    lines = [
        ("context", f"{facts.context_length} tokens, prompt and answer together{window}"),
        *_describe_footprint(footprint, provider),
        ("template", "chat template" if facts.chat is not None else "none: continues raw text"),
    ]
    if facts.cache_type is CacheType.FLOAT16:
        lines.append(("cache", "float16 KV cache, half the memory of float32"))
    elif facts.cache_type is CacheType.INT8:
        lines.append(("cache", "int8 KV cache, a quarter of the memory of float32"))
    if facts.plain_attention:
        lines.append(("attention", "plain operators: exact, slower than the fused operator"))
    stated = [
        f"{name.replace('_', ' ')} {value:g}" for name, value in vars(facts.generation).items() if value is not None
    ]
    lines.append(("sampling", ", ".join(stated) + " (the publisher's defaults)" if stated else "greedy"))
    return lines


_TRUNCATIONS = {
    "document": "the end of the document",
    "longest": "the end of the longer one, query or document",
    "end": "the end of query and document joined",
}


def _access_of(source: Source) -> str:
    if source.gated is None:
        return "access unknown"
    return "gated" if source.gated else "public"


def describe_bundle(manifest: Manifest, size: int) -> list[tuple[str, str]]:
    """The manifest in lines: (label, text)."""
    source = manifest.source
    lines = [
        ("name", manifest.name),
        *([("release", str(manifest.release))] if manifest.release is not None else []),
        ("kind", f"{manifest.kind.value}, architecture {manifest.architecture}"),
        ("precision", f"{manifest.precision.value}, for the provider {manifest.provider.value}"),
        (
            "source",
            f"{source.resolved} ({source.origin})" + (f", revision {source.revision}" if source.revision else ""),
        ),
        ("license", f"{source.license or 'not stated'}, {_access_of(source)}"),
        ("size", f"{megabytes(size)} in {len(manifest.files)} files"),
        ("max length", f"{manifest.tokenizer.max_length} tokens"),
    ]
    facts = manifest.embedder
    if facts is not None:
        normalized = "normalized" if facts.normalize else "not normalized"
        pooled = ", ".join(one.value for one in facts.poolings)
        lines.append(("embeddings", f"{facts.dimension} dimensions, {pooled} pooling, {normalized}"))
        lines.append(("prompts", ", ".join(facts.prompts) or "none"))
        if facts.matryoshka_dimensions:
            lines.append(("matryoshka", f"dimensions {', '.join(map(str, facts.matryoshka_dimensions))}"))
    pairs = manifest.reranker
    if pairs is not None:
        lines.append(("labels", ", ".join(pairs.labels)))
        lines.append(("scores", f"{pairs.scores.value} (the publisher's default)"))
        lines.append(("truncation", _TRUNCATIONS[pairs.pair.truncation.value]))
    if manifest.decoder is not None:
        from ...runtime.decoder.memory_estimate import footprint_of

        lines += describe_decoder(manifest.decoder, footprint_of(manifest, manifest.decoder), manifest.provider)
    how = manifest.quantization or manifest.blocks
    if how is not None:
        lines.append((manifest.precision.value, str(how)))
    if manifest.prefill is not None:
        lines.append(("prefill", str(manifest.prefill)))
    if manifest.quantization is not None and manifest.quantization.ladder:
        lines.append(("recipes", describe_ladder(manifest.quantization, manifest.kind)))
    certificate = manifest.certificate
    if certificate is not None:
        figures = ", ".join(
            f"{name.replace('_', ' ')} {figure:{'g' if figure.is_integer() else '.5f'}}"
            for name, figure in certificate.figures.items()
        )
        probed = _PROBED[manifest.kind]
        lines.append(
            ("certificate", f"{figures}, on {certificate.probe_size} {probed} against {certificate.reference}")
        )
        if certificate.layer_errors:
            lines.append(("layers", _layer_error_summary(certificate.layer_errors)))
    lines.append(("made with", ", ".join(f"{name} {version}" for name, version in manifest.made_with.items())))
    return lines


def describe_ladder(quantization: Quantization, kind: Kind) -> str:
    """The recipes that an int8 export could take, fastest first: what each of those measured reached, the one taken."""
    measure = "tau" if kind is Kind.RERANKER else "cosine"
    parts = []
    for step in quantization.ladder:
        reached = "not measured" if step.agreement is None else f"{measure} {step.agreement:.5f}"
        parts.append(f"{step} ({reached}{', taken' if quantization.is_taken(step) else ''})")
    return f"fastest first: {'; '.join(parts)}"


def _layer_error_summary(errors: Sequence[float]) -> str:
    """The relative error of the hidden states against PyTorch, in a line."""
    largest = max(range(len(errors)), key=errors.__getitem__)
    return (
        f"relative error of the hidden states against PyTorch: {errors[0]:.2%} after layer 1, {errors[-1]:.2%} after "
        f"layer {len(errors)}, at most {errors[largest]:.2%} (layer {largest + 1})"
    )
