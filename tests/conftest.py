from __future__ import annotations

import os

# Set before anything imports the libraries that read them.
os.environ.update(
    ORT_DISABLE_TELEMETRY="1", HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="true"
)
# Each test hashes what it opens, and neither reads nor changes what is the user's; those of the cache set a folder.
os.environ["ORTKIT_CACHE"] = ""
os.environ.pop("ORTKIT_POLICY", None)
# Two processes run the tests on two cores: more threads in each would wait for one another.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

import io
import json
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import pytest

from benchmarks.texts import held_out_texts
from ortkit import Bundle, Precision
from ortkit.exporters import Origin, export
from ortkit.exporters.checkpoint.catalog import find_model
from ortkit.exporters.checkpoint.wheel import download_folder, fetch_checkpoint
from tests.assets import ASSETS, DECODER, HUB_VERSIONS, MODEL, hub_folder
from tests.commands import Finished
from tests.encoder_checkpoints import write_reranker, write_tiny_checkpoint
from tests.hardware import pytest_terminal_summary, skip_without_hardware  # noqa: F401 - a hook
from tests.hub_server import LocalHub, User
from tests.hub_users import ADA, BOB, EVE, SMALL_FILES, HubUser, user_of
from tests.shared import shared_folder
from tests.silence import be_silent_for_long
from tests.small_probe import WHOLE, probe_in, write_small_probe

# A test must not fail because the machine is busy, nor now and then: each run has the same examples. For others:
# `HYPOTHESIS_RANDOM=1 python -m pytest tests/toolkit/search`.
hypothesis.settings.register_profile("tests", deadline=None, derandomize="HYPOTHESIS_RANDOM" not in os.environ)
hypothesis.settings.load_profile("tests")

# A shell has its background jobs ignore Ctrl-C, and so would all that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip_without_hardware(items)
    put_users_of_one_fixture_together(items, "int8_bundle")


def put_users_of_one_fixture_together(items: list[pytest.Item], fixture: str) -> None:
    """Put the files whose tests use a slow fixture first, so that one process makes it while the others do something.

    Each process begins with a part of the list; in the order of the folders, all of them wait for the first that makes
    it, and a core has nothing to do.
    """
    users = {item.path for item in items if fixture in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: item.path not in users)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test reach beyond the loopback."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else address
        assert self.family == socket.AF_UNIX or host in {"127.0.0.1", "::1", "localhost"}, f"a test connects to {host}"
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep nothing in the user's cache, and find there what `python -m tests.assets` fetched."""
    folder = tmp_path_factory.mktemp("cache")
    for name in ASSETS:
        (folder / name).symlink_to(download_folder() / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORTKIT_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def share_of_the_cores() -> Iterator[None]:
    """Where several processes run the tests, let what works on all cores take no more than a fair share of them.

    A decoder's threads wait for one another by spinning, and two processes' threads on the same cores do little else.
    """
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    with pytest.MonkeyPatch.context() as patch:
        if hasattr(os, "sched_getaffinity"):
            own = os.sched_getaffinity
            patch.setattr("os.sched_getaffinity", lambda process: set(sorted(own(process))[::count]))
        yield


@pytest.fixture(scope="session", autouse=True)
def small_probe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Let the exports of this process certify on a few texts, unless `whole_probe` is asked for."""
    folder = tmp_path_factory.mktemp("probe") / "small"
    write_small_probe(folder)
    with probe_in(folder):
        yield folder


@pytest.fixture
def whole_probe() -> Iterator[None]:
    """Certify and calibrate on all texts, as users' exports do."""
    with probe_in(WHOLE):
        yield


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    """The folder of the real all-MiniLM-L6-v2, fetched by `python -m tests.assets`."""
    return fetch_checkpoint(find_model(MODEL), offline=True)


@pytest.fixture(scope="session")
def held_out() -> list[str]:
    """500 real English texts of 3 to 250 words."""
    return held_out_texts(500)


def exported(tmp_path_factory: pytest.TempPathFactory, model: str, precision: Precision) -> Bundle:
    """The bundle of a real model from its wheel, exported once for all processes that run the tests."""

    def make(out: Path) -> None:
        with probe_in(WHOLE):
            export(model, precision=precision, out=out, origin=Origin.WHEEL, offline=True)
        if precision is Precision.INT8:
            # It sleeps for half a minute, in which other tests can run.
            be_silent_for_long(out, out.parent / SILENCE)

    return Bundle.open(shared_folder(tmp_path_factory, f"{model}-{precision.value}", make))


SILENCE = "silence"
"""Lies beside the bundle."""


@pytest.fixture(scope="session")
def int8_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return exported(tmp_path_factory, MODEL, Precision.INT8)


@pytest.fixture(scope="session")
def silence(int8_bundle: Bundle) -> Path:
    """The folder with what a process shows that was started when the int8 bundle was made; see `be_silent_for_long`."""
    return int8_bundle.path.parent / SILENCE


@pytest.fixture(scope="session")
def smollm_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The real SmolLM2-135M-Instruct rounded again to 4 bits, from the GGUF file in its wheel."""
    return exported(tmp_path_factory, DECODER, Precision.INT4)


@pytest.fixture(scope="session")
def fp32_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return exported(tmp_path_factory, MODEL, Precision.FP32)


@pytest.fixture
def bundle_copy(int8_bundle: Bundle, tmp_path: Path) -> Path:
    """A bundle that a test may damage."""
    target = tmp_path / "copy"
    shutil.copytree(int8_bundle.path, target)
    return target


@pytest.fixture
def edit_manifest(bundle_copy: Path) -> Callable[[Callable[[dict], None]], Path]:
    """Change the manifest of `bundle_copy` by a function on its JSON."""

    def edit(change: Callable[[dict], None]) -> Path:
        path = bundle_copy / "manifest.json"
        manifest = json.loads(path.read_text(encoding="utf-8"))
        change(manifest)
        path.write_text(json.dumps(manifest), encoding="utf-8")
        return bundle_copy

    return edit


@pytest.fixture(scope="session")
def reranker_checkpoint(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small cross-encoder of the architecture of ms-marco's."""
    return shared_folder(
        tmp_path_factory,
        "tiny-reranker",
        lambda folder: write_reranker(folder, checkpoint, max_position_embeddings=128),
    )


@pytest.fixture(scope="session")
def reranker_bundle(reranker_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The int8 bundle of a small cross-encoder."""

    def make(out: Path) -> None:
        export(str(reranker_checkpoint), precision=Precision.INT8, out=out)

    return Bundle.open(shared_folder(tmp_path_factory, "tiny-reranker-int8", make))


@pytest.fixture(scope="session")
def tiny_checkpoint_base(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT; see `tiny_checkpoint` for one that a test may change."""
    return shared_folder(
        tmp_path_factory, "tiny-bert", lambda folder: write_tiny_checkpoint(folder, checkpoint, "bert")
    )


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle of a small BERT in fp32, with which thousands of texts take a second."""

    def make(out: Path) -> None:
        export(str(tiny_checkpoint_base), precision=Precision.FP32, out=out)

    return Bundle.open(shared_folder(tmp_path_factory, "tiny", make))


@pytest.fixture
def tiny_checkpoint(tiny_checkpoint_base: Path, tmp_path: Path) -> Path:
    """A copy of the small BERT that a test may change."""
    target = tmp_path / "tiny-bert"
    shutil.copytree(tiny_checkpoint_base, target)
    return target


@pytest.fixture
def ortkit(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Finished]:
    """Run a command line in this process, as the console script does, and return what it printed and its exit code."""
    from ortkit.toolkit.cli import cli, exit_code_of

    def run(*arguments: object, stdin: bytes = b"", tty: bool = False) -> Finished:
        buffer = io.BytesIO(stdin)
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=buffer, isatty=lambda: tty))
        capfdbinary.readouterr()
        code = exit_code_of(lambda: cli.main([str(argument) for argument in arguments], standalone_mode=False))
        captured = capfdbinary.readouterr()
        return Finished(code, captured.out, captured.err.decode("utf-8"))

    return run


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    """A local Hub with users and small repositories of every kind of access."""
    local = LocalHub()
    local.users = {ADA: User("ada"), BOB: User("bob"), EVE: User("eve", "fineGrained", reads_gated=False)}
    local.add("org/public", SMALL_FILES)
    local.add("org/gated", SMALL_FILES, gated="auto", granted={"ada"})
    local.add("org/by-hand", SMALL_FILES, gated="manual", granted={"ada"})
    local.add("org/private", SMALL_FILES, private=True, granted={"ada"})
    local.renamed["org/old-name"] = "org/public"
    for trouble in ("429", "503", "slow", "html"):
        local.add(f"org/{trouble}", SMALL_FILES, trouble=trouble)
    yield local
    local.close()


@pytest.fixture
def user(hub: LocalHub, tmp_path: Path) -> HubUser:
    """Someone with the huggingface_hub that an export runs with."""
    return user_of(hub, tmp_path / "home")


def with_version(version: str | None, hub: LocalHub, tmp_path: Path) -> HubUser:
    return user_of(hub, tmp_path / "home", hub_folder(version) if version is not None else None)


@pytest.fixture(params=[None, *HUB_VERSIONS], ids=["as-installed", *HUB_VERSIONS])
def every_user(request: pytest.FixtureRequest, hub: LocalHub, tmp_path: Path) -> HubUser:
    """Someone with each generation of huggingface_hub in turn: for what its HTTP library and its cache decide."""
    return with_version(request.param, hub, tmp_path)


@pytest.fixture(
    params=[None, *(pytest.param(version, marks=pytest.mark.slow) for version in HUB_VERSIONS)],
    ids=["as-installed", *HUB_VERSIONS],
)
def any_user(request: pytest.FixtureRequest, hub: LocalHub, tmp_path: Path) -> HubUser:
    """As `every_user`, for what our own code decides: the other generations are slow together."""
    return with_version(request.param, hub, tmp_path)
