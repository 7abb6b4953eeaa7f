"""The export stage, read from top to bottom: checkpoint -> graph -> quantize -> certify -> bundle."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from exporters.architectures import check_architecture
from exporters.checkpoint import Checkpoint
from exporters.facts import kind_of, lower_case, max_length
from exporters.gguf import unpacked, unpacked_size
from exporters.graph_files import need_space
from exporters.sources import Listener, Origin, find_checkpoint
from exporters.tasks import Task, task_of
from exporters.unfinished import Unfinished, folder_of
from runtime.bundle import TOKENIZER, Bundle, BundleWriter
from runtime.encoder import articled
from runtime.errors import CheckpointError, InputError, OutputError
from runtime.manifest import (
    SCHEMA,
    CacheType,
    Kind,
    Manifest,
    Precision,
    Provider,
    TokenizerFacts,
    manifest_to_json,
)
from runtime.version import __version__

PRECISIONS = {
    Kind.EMBEDDER: (Precision.FP32, Precision.INT8),
    Kind.RERANKER: (Precision.FP32, Precision.INT8),
    Kind.DECODER: (Precision.FP32, Precision.FP16, Precision.INT8, Precision.INT4, Precision.SOURCE),
}
"""What each kind is exported to."""
HALF_CACHES = (Precision.INT8, Precision.INT4, Precision.SOURCE)
"""The precisions with which the cache alone may be float16."""
CONVERSIONS = {Precision.SOURCE: "keep the blocks of the file", Precision.FP16: "round to float16"}
"""What becomes of a float32 graph, where it is not quantized."""
LIBRARIES = ("torch", "transformers", "optimum", "optimum-onnx", "onnxruntime", "tokenizers", "numpy")


class Progress(Listener, Protocol):
    """Is told what an export does; the command line shows it."""

    def begin(self, stage: str) -> None: ...

    def end(self, stage: str, seconds: float) -> None: ...

    def advanced(self, tensors: int, of_tensors: int, size: int, of_size: int) -> None: ...


class Silence:
    """Shows nothing."""

    def begin(self, stage: str) -> None: ...

    def end(self, stage: str, seconds: float) -> None: ...

    def note(self, text: str) -> None: ...

    def downloaded(self, done: int, total: int) -> None: ...

    def advanced(self, tensors: int, of_tensors: int, size: int, of_size: int) -> None: ...


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
    kind: Kind | None = None,
    min_cosine: float | None = None,
    min_tau: float | None = None,
    max_kl: float | None = None,
    cache: CacheType | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Make a bundle from a catalog name, a Hub id, a folder in Hugging Face layout or a GGUF file.

    `out` is the bundle's folder, by default `bundles/NAME-PRECISION`; a bundle that is there is replaced when the new
    one is complete. `token_host` is a host beside the Hub's own that the token may be sent to. `kind` is what the model
    is for, by default what the catalog or its own files say. `min_cosine` is how close to PyTorch an embedder must come
    on every text of the probe set, `min_tau` how close a reranker must rank to it, as the mean of Kendall's tau over
    the probe set's queries, `max_kl` how far a decoder's next token may be from it, as the mean KL divergence over the
    probe set in nats; the fastest recipe of the precision that holds it is searched. `cache` is the type of a decoder's
    keys and values, by default float32, and float16 where everything is: half of the memory, slower on CPUs, and for
    int8, int4 and source. `Precision.FP16` is for GPUs and half of the disk of float32: CPUs compute most of it in
    float32 after all, and are faster with int4.

    Raises NotSignedInError, AccessError, NotFoundError, NetworkError, CheckpointError, UnsupportedModelError,
    InputError, OutputError, or EdgekitError for a bundle that does not agree with PyTorch, and leaves nothing behind.
    Of a decoder, what a killed or interrupted call has done stays beside `out`, and the same call goes on from there.
    """
    told = progress or Silence()
    for name, bar in (("min_cosine", min_cosine), ("min_tau", min_tau)):
        if bar is not None and not 0 < bar < 1:
            raise InputError(f"`{name}` must lie between 0 and 1, not {bar}")
    if max_kl is not None and not max_kl > 0:
        raise InputError(f"`max_kl` must be above 0, not {max_kl}")
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
    found = kind_of(checkpoint, kind)
    chosen = precision or default_precision(checkpoint, found)
    bar = checked_bar(found, {Kind.EMBEDDER: min_cosine, Kind.RERANKER: min_tau, Kind.DECODER: max_kl})
    check_precision(checkpoint, found, chosen)
    cached = checked_cache(found, chosen, cache)
    target = Path(out) if out is not None else Path("bundles") / f"{checkpoint.name}-{chosen.value}"
    writer = BundleWriter(target)
    with output_errors(writer), writer:
        if checkpoint.gguf is not None:
            with stage(told, "unpack the GGUF file"):
                need_space(writer.target.parent, unpacked_size(checkpoint.gguf))
                checkpoint = unpacked(checkpoint, writer.scratch / "checkpoint")
        task = task_of(checkpoint, found, cached)
        bundle = build(task, draft_manifest(checkpoint, found, chosen, provider), writer, told, bar)
        return Exported(bundle, checkpoint.weights_size)


BARS = {Kind.EMBEDDER: "min_cosine", Kind.RERANKER: "min_tau", Kind.DECODER: "max_kl"}
"""What says how close to PyTorch a bundle must come."""


def checked_bar(kind: Kind, given: Mapping[Kind, float | None]) -> float | None:
    """The bar for this kind; raises InputError when the one for another kind is given."""
    for other, bar in given.items():
        if bar is not None and other is not kind:
            raise InputError(
                f"`{BARS[other]}` is for {other.value}s, and this is {articled(kind)}",
                hint=f"use `--{BARS[kind].replace('_', '-')}`",
            )
    return given[kind]


def default_precision(checkpoint: Checkpoint, kind: Kind) -> Precision:
    """What the catalog says, else the smallest that holds what a model of this kind is for."""
    if checkpoint.spec is not None:
        return checkpoint.spec.precision
    return Precision.INT4 if kind is Kind.DECODER else Precision.INT8


def check_precision(checkpoint: Checkpoint, kind: Kind, precision: Precision) -> None:
    """Raise InputError for a precision that models of this kind, or from this source, are not exported to."""
    known = [one for one in PRECISIONS[kind] if one is not Precision.SOURCE or checkpoint.gguf is not None]
    choices = ", ".join(f"`{one.value}`" for one in known)
    if precision is Precision.SOURCE and precision in PRECISIONS[kind] and precision not in known:
        raise InputError(
            f"`source` keeps the blocks of a GGUF file, and `{checkpoint.name}` comes in none",
            hint=f"choose one of {choices}",
        )
    if precision not in known:
        raise InputError(f"{kind.value}s are not exported to `{precision.value}`", hint=f"choose one of {choices}")


def checked_cache(kind: Kind, precision: Precision, cache: CacheType | None) -> CacheType:
    """The type of keys and values; raises InputError for one that the kind or the precision does not have."""
    if cache is not None and kind is not Kind.DECODER:
        raise InputError(f"`cache` is for decoders, and this is {articled(kind)}", hint="leave out `--cache`")
    if precision is Precision.FP16:
        if cache is CacheType.FLOAT32:
            raise InputError(
                "`fp16` has everything in float16, keys and values too, and not in `float32`",
                hint="leave out `--cache`",
            )
        return CacheType.FLOAT16
    if cache is CacheType.FLOAT16 and precision not in HALF_CACHES:
        choices = ", ".join(f"`{one.value}`" for one in HALF_CACHES)
        raise InputError(
            f"`{precision.value}` has keys and values in float32 only", hint=f"choose one of {choices}, or `fp16`"
        )
    return cache or CacheType.FLOAT32


def build(task: Task[Any], draft: Manifest, writer: BundleWriter, told: Progress, bar: float | None) -> Bundle:
    copy_tokenizer(task.checkpoint, writer.folder)
    precision = draft.precision
    manifest = task.described(draft, writer.folder)
    with ExitStack() as stack:
        if task.keeps_work:
            unfinished = stack.enter_context(Unfinished(writer.target, key_of(manifest, bar)))
            task.begin(unfinished.folder, told.advanced)
        with stage(told, "load the weights"):
            model = task.load()
        with stage(told, "trace with Optimum"):
            graph = task.graph(model, writer.scratch, manifest)
        manifest = dataclasses.replace(manifest, inputs=tuple(value.name or "" for value in graph.graph.inputs))
        with stage(told, "run the probe set with PyTorch"):
            expected = task.reference(model, manifest)
        del model
        if precision is not Precision.FP32:
            with stage(told, CONVERSIONS.get(precision, f"quantize to {precision.value}")):
                graph, manifest = task.quantized(graph, Bundle(writer.folder, manifest), expected, bar)
        task.write(graph, writer.folder)
        with stage(told, "certify against PyTorch"):
            certificate = task.certify(Bundle(writer.folder, manifest), expected, bar)
        with stage(told, "write the bundle"):
            return writer.commit(dataclasses.replace(manifest, certificate=certificate))


def key_of(manifest: Manifest, bar: float | None) -> str:
    """What tells an export apart from others to the same target: the checkpoint's hashes, versions, precision, bar."""
    return f"{manifest_to_json(manifest)}{bar}\n"


def draft_manifest(checkpoint: Checkpoint, kind: Kind, precision: Precision, provider: Provider) -> Manifest:
    """All of the manifest that the checkpoint's own files decide."""
    return Manifest(
        schema=SCHEMA,
        kind=kind,
        name=checkpoint.name,
        precision=precision,
        provider=provider,
        architecture=checkpoint.architecture.name,
        inputs=(),
        source=checkpoint.source,
        files={},
        tokenizer=TokenizerFacts(max_length(checkpoint), lower_case(checkpoint), special_tokens(checkpoint)),
        embedder=None,
        certificate=None,
        made_with={"edgekit": __version__} | {library: version(library) for library in LIBRARIES},
    )


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
        written = (writer.staging, folder_of(writer.target))
        concerned = writer.staging.is_relative_to(place) or any(place.is_relative_to(folder) for folder in written)
        if error.errno is None or not concerned:
            raise
        hint = "free some space, or choose another folder with `--out`" if error.errno == errno.ENOSPC else None
        raise OutputError(f"the bundle cannot be written to `{writer.path}`: {error.strerror}", hint=hint) from error
