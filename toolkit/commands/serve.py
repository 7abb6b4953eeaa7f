"""`ortkit serve`."""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...runtime.errors import InputError
from ..console.help import ExampleCommand
from ..console.terminal import say
from .bundle_names import resolve_bundle
from .options import Size, context_option, max_memory_option, once, prefill_setting_option, threads_option

if TYPE_CHECKING:
    from ..server.lifecycle import Opened, Plan
    from ..server.settings import ServerSettings

_MODULES = ("starlette", "uvicorn", "prometheus_client")
_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._:/-]{0,99})=(.+)", re.DOTALL)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,99}")
_INDEX_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""Of an index: it is a part of a path, which clients do not encode alike."""
_INDEX_SUFFIX = ".index"


@click.command(
    cls=ExampleCommand,
    sections={
        "Address": "--host --port --unix-socket --api-keys --allowed-host --cors-origin --page",
        "Models": "--index --slots --context --prefix-memory --max-memory --prefill --threads --verify",
        "Limits": (
            "--max-body --max-inputs --max-tokens --max-waiting --max-connections --request-seconds --header-seconds "
            "--idle-seconds --drain-seconds"
        ),
    },
    examples=[
        "ortkit serve all-MiniLM-L6-v2-int8 SmolLM2-135M-Instruct-int4",
        "ortkit serve small=SmolLM2-135M-Instruct-int4 --port 9000 --slots 4 --max-memory 2G",
        "ortkit serve bundles/* --host 0.0.0.0 --api-keys /etc/ortkit/api-keys",
        "ortkit serve SmolLM2-135M-Instruct-int4 --index manuals.index",
        "ortkit serve --config /etc/ortkit/serve.toml --check",
    ],
)
@click.argument("bundles", metavar="[NAME=]BUNDLE...", nargs=-1)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help='Settings in TOML, named as the options: `max_memory = "2G"`; options take precedence over it.',
)
@click.option("--check", is_flag=True, help="Open everything, say what would be served, and exit without serving it.")
@once("--host", metavar="ADDRESS", help="Address to listen at; a public one needs --api-keys.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), metavar="N", help="Port; 0 for a free one.  [default: 8080]")
@once("--unix-socket", metavar="PATH", help="Listen at a Unix socket instead.")
@once("--api-keys", metavar="FILE", help="Keys, one a line: `name: KEY` or `name: sha256:HEX`; read again on change.")
@click.option(
    "--allowed-host",
    "allowed_hosts",
    multiple=True,
    metavar="NAME",
    help="Also accept requests whose Host header is NAME; may be repeated.",
)
@click.option(
    "--cors-origin",
    "cors_origins",
    multiple=True,
    metavar="ORIGIN",
    help="Let pages of ORIGIN, such as https://example.org, call the API; may be repeated.",
)
@click.option("--page/--no-page", default=None, help="Serve a page to try the models at `/`.  [default: --page]")
@click.option(
    "--index",
    "indexes",
    multiple=True,
    metavar="[NAME=]PATH",
    help="Search in an index of `ortkit index`, with the bundle it was made with, and answer from it; may be repeated.",
)
@click.option("--slots", type=int, metavar="N", help="Answers of an LLM that are computed at once.  [default: 8]")
@context_option
@click.option("--prefix-memory", type=Size(), metavar="SIZE", help="KV cache to keep for prompts that begin the same.")
@max_memory_option
@prefill_setting_option
@threads_option
@click.option(
    "--verify/--no-verify", default=None, help="Replay the bundles' certificates first.  [default: --no-verify]"
)
@click.option("--max-body", type=Size(), metavar="SIZE", help="Largest body of a request.  [default: 8M]")
@click.option("--max-inputs", type=int, metavar="N", help="Most texts or documents in a request.  [default: 2048]")
@click.option("--max-tokens", type=int, metavar="N", help="Most tokens of an answer.  [default: as many as fit]")
@click.option(
    "--max-waiting", type=int, metavar="N", help="Most requests that wait; others are answered 429.  [default: 64]"
)
@click.option("--max-connections", type=int, metavar="N", help="Most connections that are open.  [default: 1024]")
@click.option("--request-seconds", type=float, metavar="S", help="Longest time of a request.  [default: 600]")
@click.option(
    "--header-seconds", type=float, metavar="S", help="Longest time to receive a request's headers.  [default: 10]"
)
@click.option("--idle-seconds", type=float, metavar="S", help="Close idle connections after S.  [default: 30]")
@click.option(
    "--drain-seconds", type=float, metavar="S", help="Time that running requests have at SIGTERM.  [default: 30]"
)
@click.option(
    "--log-texts/--no-log-texts", default=None, help="Log the texts of requests and answers.  [default: --no-log-texts]"
)
def serve(*, bundles: tuple[str, ...], config: Path | None, check: bool, **options: Any) -> None:
    """Serve bundles over HTTP, with the APIs of OpenAI, Cohere, Jina and TEI, and a page to try them at `/`.

    A model has the name of its bundle's folder, or NAME; so has an index, without `.index`. Requests to /v1/embeddings,
    /v1/rerank, /v1/search, /v1/chat/completions and /v1/completions share batches; /metrics is for Prometheus.
    docs/server.md has the rest.

    The log goes to stderr, one JSON object a line, without texts. SIGTERM ends the running requests first, SIGHUP reads
    the keys again and replaces the bundles that have changed.
    """
    from ...exporters.extras import need

    need("serve", *_MODULES)
    if check:
        _check(plan_of(bundles, config, options))
        return
    with _without_sighup():
        code = _run(bundles, config, options)
    click.get_current_context().exit(code)


@contextlib.contextmanager
def _without_sighup() -> Iterator[None]:
    """Ignore SIGHUP, which would end the process: a reload may be asked for while the server is being imported."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def _check(plan: Plan) -> None:
    from ..server import lifecycle

    with lifecycle.open_server(plan) as opened:
        _print_opened(opened)
        say("ok: nothing is served with `--check`")


def _run(bundles: Sequence[str], config: Path | None, options: Mapping[str, Any]) -> int:
    from ..server import lifecycle

    def started(opened: Opened) -> None:
        # Whoever reads stdout may have gone.
        with contextlib.suppress(OSError):
            _print_opened(opened)

    return lifecycle.run(plan_of(bundles, config, options), started=started)


def plan_of(bundles: Sequence[str], config: Path | None, options: Mapping[str, Any]) -> Plan:
    """What to serve: the file's settings, and the options over them; raises InputError and NotFoundError."""
    from ..server.lifecycle import Plan

    settings = {name: value for name, value in options.items() if name != "indexes"}
    return Plan(
        _settings_of(config, settings),
        _paths_of(bundles, config),
        again=lambda: _paths_of(bundles, config),
        indexes=_indexes_of(options.get("indexes", ()), config),
    )


def _settings_of(config: Path | None, options: Mapping[str, Any]) -> ServerSettings:
    from ..server.settings import ServerSettings, read_settings

    values = dict(read_settings(config).settings) if config is not None else {}
    given = {name: value for name, value in options.items() if value is not None and value != ()}
    for name in ("unix_socket", "api_keys"):
        if name in given:
            given[name] = Path(given[name])
    if "unix_socket" in given and ("host" in given or "port" in given):
        raise InputError("`--unix-socket` and `--host` or `--port` contradict each other", hint="give one of the two")
    if "host" in given or "port" in given:
        values.pop("unix_socket", None)
    return replace(ServerSettings(), **{**values, **given})


def _paths_of(bundles: Sequence[str], config: Path | None) -> dict[str, str]:
    """Name of a model -> path of its bundle; those of the command line replace those of the file."""
    named: list[tuple[str | None, str]] = [_split(argument) for argument in bundles]
    if not named and config is not None:
        from ..server.settings import read_settings

        named = list(read_settings(config).bundles)
    found: dict[str, str] = {}
    for name, bundle in named:
        path = resolve_bundle(bundle)
        served = name if name is not None else Path(path).absolute().name
        if not _NAME.fullmatch(served):
            raise InputError(
                f"`{served}` cannot be the name of a model: letters, digits and `._:/-` can", hint=_hint(path)
            )
        if served in found:
            raise InputError(f"two bundles have the name `{served}`: `{found[served]}` and `{path}`", hint=_hint(path))
        found[served] = path
    return found


def _indexes_of(indexes: Sequence[str], config: Path | None) -> dict[str, str]:
    """Name of an index -> its path; those of the command line replace those of the file."""
    named: list[tuple[str | None, str]] = [_split(argument) for argument in indexes]
    if not named and config is not None:
        from ..server.settings import read_settings

        named = list(read_settings(config).indexes)
    found: dict[str, str] = {}
    for name, path in named:
        served = name if name is not None else Path(path).absolute().name.removesuffix(_INDEX_SUFFIX)
        hint = f"name one, as in `--index other={path}`, or in the table `[indexes]` of the configuration"
        if not _INDEX_NAME.fullmatch(served):
            raise InputError(f"`{served}` cannot be the name of an index: letters, digits and `._-` can", hint=hint)
        if served in found:
            raise InputError(f"two indexes have the name `{served}`: `{found[served]}` and `{path}`", hint=hint)
        found[served] = path
    return found


def _hint(path: str) -> str:
    return f"name one, as in `ortkit serve other={path}`, or in the table `[bundles]` of the configuration"


def _split(argument: str) -> tuple[str | None, str]:
    """`NAME=BUNDLE`, unless there is a path of this name."""
    found = _NAMED.fullmatch(argument)
    with contextlib.suppress(OSError, ValueError):
        if Path(argument).exists():
            found = None
    return (found[1], found[2]) if found is not None else (None, argument)


def _print_opened(opened: Opened) -> None:
    from ...runtime.session.memory import mebibytes
    from ...runtime.session.memory_limit import resident_memory

    for name, bundle in opened.bundles.items():
        manifest = bundle.manifest
        release = f", release {manifest.release}" if manifest.release is not None else ""
        say(f"model    {name}: {manifest.kind.value}, {manifest.precision.value}, {bundle.path}{release}")
    for served in opened.indexes.all():
        facts = served.facts
        say(
            f"index    {served.name}: {facts.files:,} files, {facts.chunks:,} chunks, built "
            f"{facts.built:%Y-%m-%d %H:%M} UTC with {served.embedder.name}, {facts.path}"
        )
    settings = opened.settings
    keys = "none are needed" if opened.keys is None else f"{len(opened.keys)} of `{opened.keys.path}`"
    say(f"keys     {keys}")
    say(
        f"memory   {mebibytes(resident_memory())}"
        + (f" of {mebibytes(settings.max_memory)}" if settings.max_memory is not None else "")
    )
    for address in opened.listener.addresses:
        say(f"address  {address}")
