"""Export a model: find its checkpoint, plan what to make of it, and convert it.

`ortkit.exporters.pipeline` and what stands behind it load torch, so nothing here imports it before it is needed.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime.arguments import checked_flag, checked_path
from ..runtime.bundle.manifest import CacheType, Kind, Precision, Provider
from ..runtime.bundle.records import Choice, choice
from ..runtime.bundle.writer import BundleWriter
from ..runtime.errors import InputError, NotFoundError, OutputError
from ..runtime.output_path import bundles_folder, is_utf8
from ..runtime.sizes import megabytes
from .hub.transport import no_network
from .options import ExportOptions, ExportPlan, check_for_catalog, plan_export
from .progress import NoProgress, Progress, stage
from .providers.support import SUPPORT
from .sources import Origin, describe_source
from .workdir import interrupted_exports, work_folder_of

if TYPE_CHECKING:
    from .pipeline import Exported


def export(
    source: str | os.PathLike[str],
    *,
    precision: Precision | str | None = None,
    provider: Provider | str = Provider.CPU,
    out: str | os.PathLike[str] | None = None,
    origin: Origin | str | None = None,
    revision: str | None = None,
    offline: bool = False,
    token_host: str | None = None,
    kind: Kind | str | None = None,
    min_cosine: float | None = None,
    min_tau: float | None = None,
    max_kl: float | None = None,
    cache: CacheType | str | None = None,
    prefill: Precision | str | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Export a model to a bundle, and certify it against the publisher's library.

    Choices are members of an enum or their values, as on the command line.

    Args:
        source: a name of the catalog, a Hub id, a folder in Hugging Face layout or a GGUF file.
        precision: by default `source` for a quantized GGUF file, else what the catalog says, else `int8`, and `int4`
            for a decoder; for CUDA `fp16`, and `int4` for a decoder.
        provider: the execution provider that the graph is made for. It is certified on the CPU.
        out: the bundle's folder, by default `bundles/NAME-PRECISION`, with `-float16-cache` behind it for such a cache,
            and `-cuda` for that provider. The environment variable ORTKIT_BUNDLES names another folder than `bundles`.
            A bundle that is there is replaced when the new one is complete.
        origin: where to take `source` from, by default what its form says.
        revision: a branch, tag or commit on the Hub.
        offline: use the Hub's cache only.
        token_host: a host beside the Hub's own that the token may be sent to.
        kind: what the model is for, by default what the catalog or its own files say.
        min_cosine: threshold for embedders, the lowest cosine similarity to PyTorch on the probe set. With any of the
            three thresholds, the fastest recipe of the precision that reaches it is searched.
        min_tau: threshold for rerankers, the mean of Kendall's tau over the probe set's queries.
        max_kl: threshold for decoders, the mean KL divergence of the next token from PyTorch's, in nats.
        cache: the type of a decoder's KV cache, on the CPU by default float32: float16 takes half of the memory, for
            int8, int4 and source, and is slower; int8 takes a quarter, and after long prompts, which are slower, new
            tokens are faster. On CUDA it is float16.
        prefill: `int8` adds a second graph of a decoder for prompts, with 8-bit weights and activations: where the CPU
            has VNNI or AMX, prompts are about 1.7 times as fast, for 2.5 times the size of an int4 bundle.
        progress: shows what the export does; by default nothing is shown.

    Raises:
        NotSignedInError, AccessError, NotFoundError, NetworkError: the checkpoint cannot be downloaded.
        CheckpointError, UnsupportedModelError: it is damaged, or would not be exported exactly.
        InputError, OutputError: the options do not go together, or the bundle cannot be written.
        OrtkitError: the bundle does not agree with PyTorch.

    A call that fails leaves nothing behind. Of a decoder, what a killed or interrupted call has done stays beside
    `out`, and the same call resumes from it.

    Example:
        exported = export("all-MiniLM-L6-v2", precision="int8")

    """
    progress = progress or NoProgress()
    source = _checked_source(source)
    for name, text in (("revision", revision), ("token_host", token_host)):
        if text is not None and not isinstance(text, str):
            raise InputError(f"`{name}` must be a string, not {type(text).__name__}")
    origin = _chosen(Origin, origin, "origin")
    offline = checked_flag(offline, "offline")
    out = None if out is None else checked_path(out, "out")
    options = ExportOptions(
        _chosen(Kind, kind, "kind"),
        _chosen(Precision, precision, "precision"),
        _chosen(CacheType, cache, "cache"),
        _checked_thresholds(min_cosine, min_tau, max_kl),
        choice(Provider, provider, "provider"),
        _chosen(Precision, prefill, "prefill"),
    )
    _check_working_directory()
    if os.path.exists(source):  # noqa: PTH110 - a name of the catalog or the Hub is not a path
        _check_path(Path(source).absolute())
    _check_path(Path(out if out is not None else bundles_folder()).absolute())
    if not Path(source).exists():
        check_for_catalog(source, options)
    with stage(progress, "find the checkpoint"):
        description = describe_source(
            source, origin=origin, revision=revision, offline=offline, token_host=token_host, progress=progress
        )
        plan = plan_export(description.checkpoint, options)
        checkpoint = description.fetch()
    name = bundle_name(checkpoint.name, plan)
    target = Path(out) if out is not None else bundles_folder() / name
    writer = BundleWriter(target)
    for left in interrupted_exports(writer.target):
        progress.note(
            f"`{left.folder}` ({megabytes(left.size)}) is an interrupted export to `{left.target}`: the "
            "same command resumes it, and the folder can be removed"
        )
    with _output_errors(writer), writer:
        with stage(progress, "import torch, transformers and Optimum"):
            # It takes seconds; a wrong name or terms to accept are reported before.
            from .pipeline import convert  # noqa: PLC0415
        with no_network():
            return convert(checkpoint, plan, writer, progress)


def _checked_source(source: object) -> str:
    """A name or path as a string; raises InputError for anything else."""
    if not isinstance(source, (str, os.PathLike)) or isinstance(os.fspath(source), bytes):
        raise InputError(f"`source` must be a name or a path, not {type(source).__name__}")
    if not os.fspath(source):
        raise InputError("`source` is empty", hint="`ortkit models` prints the names of the catalog")
    return os.fspath(source)


def _chosen(choices: type[Choice], value: Choice | str | None, name: str) -> Choice | None:
    """A member of an enum, given as it or its value; None is the default. Raises InputError for anything else."""
    return None if value is None else choice(choices, value, name)


def _checked_thresholds(min_cosine: object, min_tau: object, max_kl: object) -> dict[Kind, float | None]:
    """The thresholds by the kind of model; raises InputError for one that is not valid."""
    found: dict[Kind, float | None] = {}
    for kind, name, value in (
        (Kind.EMBEDDER, "min_cosine", min_cosine),
        (Kind.RERANKER, "min_tau", min_tau),
        (Kind.DECODER, "max_kl", max_kl),
    ):
        if value is None:
            found[kind] = None
        elif isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InputError(f"`{name}` must be a number, not {type(value).__name__}")
        elif kind is Kind.DECODER and not value > 0:
            raise InputError(f"`{name}` must be above 0, not {value}")
        elif kind is not Kind.DECODER and not 0 < value < 1:
            raise InputError(f"`{name}` must lie between 0 and 1, not {value}")
        else:
            found[kind] = float(value)
    return found


def _check_working_directory() -> None:
    """Raise NotFoundError where the working directory was removed, which torch and others need."""
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise NotFoundError(
            "the working directory of this process was removed", hint="change to one that exists: `cd ~`"
        ) from error


def _check_path(path: Path) -> None:
    """Raise InputError for a path that is not UTF-8, which torch and safetensors cannot open."""
    if is_utf8(path):
        return
    try:
        os.fsencode(path).decode("utf-8")
    except UnicodeDecodeError:
        hint = "give the folder another name"
    else:
        hint = "the encoding of the locale is another: set `PYTHONUTF8=1`"
    raise InputError(f"the path `{path}` is not UTF-8, which libraries of the export need", hint=hint)


def bundle_name(model: str, plan: ExportPlan) -> str:
    """The default name of a bundle's folder: a KV cache of another type than usual, and a provider, are part of it."""
    parts = [model, plan.precision.value]
    if plan.kind is Kind.DECODER and plan.cache is not SUPPORT[plan.provider].caches[plan.precision][0]:
        parts.append(f"{plan.cache.value}-cache")
    if plan.prefill:
        parts.append("int8-prefill")
    if plan.provider is not Provider.CPU:
        parts.append(plan.provider.value)
    return "-".join(parts)


@contextmanager
def _output_errors(writer: BundleWriter) -> Iterator[None]:
    """Raise OutputError where the bundle cannot be written; other OSErrors pass."""
    try:
        yield
    except OSError as error:
        place = Path(os.fsdecode(error.filename)).absolute() if error.filename else writer.staging
        written = (writer.staging, work_folder_of(writer.target))
        concerned = writer.staging.is_relative_to(place) or any(place.is_relative_to(folder) for folder in written)
        if error.errno is None or not concerned:
            raise
        hint = "free some space, or choose another folder with `--out`" if error.errno == errno.ENOSPC else None
        raise OutputError(f"the bundle cannot be written to `{writer.path}`: {error.strerror}", hint=hint) from error
