"""The export stage, read from top to bottom: checkpoint -> graph -> quantize -> certify -> bundle."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.architectures import check_architecture
from exporters.calibration import Calibration
from exporters.certify import certify_embedder, reference_vectors
from exporters.checkpoint import Checkpoint
from exporters.dense import dense_layers, write_dense
from exporters.encoder import load_model, rebuild, trace
from exporters.facts import embedder_facts, lower_case, max_length
from exporters.probe import calibration_texts, probe_texts
from exporters.quantize import Recipe
from exporters.recipes import Trials
from exporters.sources import Listener, Origin, find_checkpoint
from runtime.bundle import GRAPH, TOKENIZER, Bundle, BundleWriter
from runtime.embedder import Embedder
from runtime.errors import CheckpointError, InputError, OutputError
from runtime.manifest import SCHEMA, EmbedderFacts, Kind, Manifest, Precision, Provider, Quantization, TokenizerFacts
from runtime.tokenizer import Tokenizer
from runtime.version import __version__

PRECISIONS = (Precision.FP32, Precision.INT8)
LIBRARIES = ("torch", "transformers", "optimum", "optimum-onnx", "onnxruntime", "tokenizers", "numpy")


class Progress(Listener, Protocol):
    """Is told what an export does; the command line shows it."""

    def begin(self, stage: str) -> None: ...

    def end(self, stage: str, seconds: float) -> None: ...


class Silence:
    """Shows nothing."""

    def begin(self, stage: str) -> None: ...

    def end(self, stage: str, seconds: float) -> None: ...

    def note(self, text: str) -> None: ...

    def downloaded(self, done: int, total: int) -> None: ...


@dataclass(frozen=True)
class Exported:
    """What an export made, and the size in bytes of the weights it was made from."""

    bundle: Bundle
    checkpoint_size: int


def export(
    source: str,
    *,
    precision: Precision | None = None,
    provider: Provider = Provider.CPU,
    out: str | os.PathLike[str] | None = None,
    origin: Origin | None = None,
    revision: str | None = None,
    offline: bool = False,
    token_host: str | None = None,
    min_cosine: float | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Make a bundle from a catalog name, a Hub id or a folder in Hugging Face layout.

    `out` is the bundle's folder, by default `bundles/NAME-PRECISION`; a bundle that is there is replaced when the new
    one is complete. `token_host` is a host beside the Hub's own that the token may be sent to. `min_cosine` is how
    close to PyTorch every text of the probe set must come; for int8 the fastest recipe that does is searched.

    Raises NotSignedInError, AccessError, NotFoundError, NetworkError, CheckpointError, UnsupportedModelError,
    InputError, OutputError, or EdgekitError for a bundle that does not agree with PyTorch, and leaves nothing behind.
    """
    told = progress or Silence()
    if min_cosine is not None and not 0 < min_cosine < 1:
        raise InputError(f"`min_cosine` must lie between 0 and 1, not {min_cosine}")
    if provider is not Provider.CPU:
        raise InputError(f"graphs for `{provider.value}` are not made yet, only for `cpu`")
    with stage(told, "find the checkpoint"):
        checkpoint = find_checkpoint(
            source,
            origin=origin,
            revision=revision,
            offline=offline,
            token_host=token_host,
            accept=check_architecture,
            listener=told,
        )
    chosen = precision or (checkpoint.spec.precision if checkpoint.spec is not None else Precision.INT8)
    if chosen not in PRECISIONS:
        raise InputError(
            f"embedders are not exported to `{chosen.value}`",
            hint=f"choose one of {', '.join(f'`{known.value}`' for known in PRECISIONS)}",
        )
    target = Path(out) if out is not None else Path("bundles") / f"{checkpoint.name}-{chosen.value}"
    writer = BundleWriter(target)
    with output_errors(writer), writer:
        bundle = build(checkpoint, chosen, provider, writer, told, min_cosine)
        return Exported(bundle, checkpoint.weights_size)


def build(
    checkpoint: Checkpoint,
    precision: Precision,
    provider: Provider,
    writer: BundleWriter,
    told: Progress,
    min_cosine: float | None,
) -> Bundle:
    facts = embedder_facts(checkpoint)
    layers = dense_layers(checkpoint, facts.dimension)
    if layers:
        facts = dataclasses.replace(
            facts, dimension=layers[-1].weight.shape[1], dense=write_dense(layers, writer.folder)
        )
    manifest = draft_manifest(checkpoint, facts, precision, provider)
    copy_tokenizer(checkpoint, writer.folder)
    with stage(told, "load the weights"):
        model = load_model(checkpoint)
    with stage(told, "trace with Optimum"):
        graph = trace(model, writer.scratch)
        rebuild(graph, checkpoint)
    manifest = dataclasses.replace(manifest, inputs=tuple(value.name or "" for value in graph.graph.inputs))
    with stage(told, "embed the probe set with PyTorch"):
        expected = reference_vectors(model, checkpoint, layers, manifest, probe_texts().texts)
    if precision is Precision.INT8:
        with stage(told, "quantize to int8"):
            tokenizer = Tokenizer(writer.folder / TOKENIZER, manifest.tokenizer)
            trials = Trials(graph, Calibration(graph, calibration_ids(tokenizer)), writer.folder, manifest)
            recipe = Recipe()
            if min_cosine is not None:
                recipe = trials.find(min_cosine, probe_texts().texts, expected, calibration_texts().texts)
            graph = trials.quantized(recipe)
        manifest = dataclasses.replace(manifest, quantization=quantization_of(recipe, trials.products))
    ir.save(graph, writer.folder / GRAPH)
    with stage(told, "certify against PyTorch"):
        certificate = certify_embedder(Embedder(Bundle(writer.folder, manifest)), expected, min_cosine=min_cosine)
    with stage(told, "write the bundle"):
        return writer.commit(dataclasses.replace(manifest, certificate=certificate))


def draft_manifest(checkpoint: Checkpoint, facts: EmbedderFacts, precision: Precision, provider: Provider) -> Manifest:
    """All of the manifest that the checkpoint's own files decide."""
    return Manifest(
        schema=SCHEMA,
        kind=Kind.EMBEDDER,
        name=checkpoint.name,
        precision=precision,
        provider=provider,
        architecture=checkpoint.architecture.name,
        inputs=(),
        source=checkpoint.source,
        files={},
        tokenizer=TokenizerFacts(max_length(checkpoint), lower_case(checkpoint), special_tokens(checkpoint)),
        embedder=facts,
        certificate=None,
        made_with={"edgekit": __version__} | {library: version(library) for library in LIBRARIES},
    )


def quantization_of(recipe: Recipe, products: int) -> Quantization:
    """The recipe as the manifest tells it."""
    return Quantization(products, len(recipe.exact), recipe.smoothing, recipe.per_token)


def special_tokens(checkpoint: Checkpoint) -> dict[str, int]:
    """Name -> id of the tokens that tokenizer.json marks as special."""
    content = checkpoint.read_json(TOKENIZER)
    if not isinstance(content, dict):
        raise CheckpointError(
            f"`{checkpoint.folder}` holds no `{TOKENIZER}`",
            hint="load its tokenizer with transformers' `AutoTokenizer` and save it with `save_pretrained`",
        )
    return {token["content"]: token["id"] for token in content.get("added_tokens", []) if token.get("special")}


def copy_tokenizer(checkpoint: Checkpoint, folder: Path) -> None:
    shutil.copyfile(checkpoint.folder / TOKENIZER, folder / TOKENIZER)
    for licence in checkpoint.folder.glob("LICENSE*"):
        shutil.copyfile(licence, folder / licence.name)


def calibration_ids(tokenizer: Tokenizer) -> Iterator[NDArray[np.int64]]:
    """Token ids (1, tokens) of the calibration texts."""
    for text in tokenizer.tokenize(calibration_texts().texts):
        yield text.ids[np.newaxis]


@contextmanager
def stage(told: Progress, name: str) -> Iterator[None]:
    told.begin(name)
    start = time.perf_counter()
    yield
    told.end(name, time.perf_counter() - start)


@contextmanager
def output_errors(writer: BundleWriter) -> Iterator[None]:
    """Say in edgekit's words that the bundle could not be written; what cannot be read is another matter."""
    try:
        yield
    except OSError as error:
        place = Path(os.fsdecode(error.filename)).absolute() if error.filename else writer.staging
        concerned = place.is_relative_to(writer.staging) or writer.staging.is_relative_to(place)
        if error.errno is None or not concerned:
            raise
        hint = "free some space, or choose another folder with `--out`" if error.errno == errno.ENOSPC else None
        raise OutputError(f"the bundle cannot be written to `{writer.path}`: {error.strerror}", hint=hint) from error
