from __future__ import annotations

import os

# Set before anything imports the libraries that read them.
os.environ.update(
    ORT_DISABLE_TELEMETRY="1", HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="true"
)
# Two processes run the tests on two cores: more threads in each would wait for one another.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

import fcntl
import io
import json
import pty
import select
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.texts import held_out_texts
from exporters import Origin, export
from exporters.catalog import find_model
from exporters.wheel import fetch_checkpoint
from runtime import Bundle, Precision
from tests.assets import DECODER, HUB_VERSIONS, MODEL, hub_folder
from tests.hub_server import LocalHub, User
from tests.silence import be_silent_for_long


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
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    out = folder / f"{model}-{precision.value}"
    with (folder / f"{out.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if out.exists():
            return Bundle.open(out)
        bundle = export(model, precision=precision, out=out, origin=Origin.WHEEL, offline=True).bundle
        if precision is Precision.INT8:
            # It sleeps for half a minute, in which other tests can run.
            be_silent_for_long(out, folder / SILENCE)
        return bundle


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
    """The real SmolLM2-135M-Instruct in 4 bits, from the GGUF file in its wheel."""
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


TINY = {"vocab_size": 30522, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TINY |= {"intermediate_size": 96, "initializer_range": 0.1}
# Those that number positions from the padding token's id on have two more, as the real ones do.
TINY_CONFIGS = {
    "bert": TINY | {"max_position_embeddings": 64},
    "distilbert": {"vocab_size": 30522, "dim": 48, "n_layers": 2, "n_heads": 4, "hidden_dim": 96}
    | {"initializer_range": 0.1, "max_position_embeddings": 64},
    # A count of heads that is no power of two, as in the real one.
    "jina-bert": TINY
    | {"num_attention_heads": 6, "max_position_embeddings": 64, "position_embedding_type": "alibi"}
    | {
        "feed_forward_type": "geglu",
        "auto_map": {"AutoModel": "jinaai/jina-bert-implementation--modeling_bert.JinaBertModel"},
    },
    # Attention to neighbours only, beyond which some of the texts reach, in all layers but the first and the fourth.
    "modernbert": TINY
    | {"num_hidden_layers": 5, "max_position_embeddings": 64, "local_attention": 16, "pad_token_id": 0}
    | {"cls_token_id": 101, "bos_token_id": 101, "sep_token_id": 102, "eos_token_id": 102},
    "mpnet": TINY | {"max_position_embeddings": 66},
    "nomic_bert": {"vocab_size": 30522, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_inner": 96, "n_positions": 64}
    | {"initializer_range": 0.1, "activation_function": "swiglu", "prenorm": False, "rotary_emb_base": 1000}
    | {"rotary_emb_fraction": 1.0, "layer_norm_epsilon": 1e-12}
    | {"auto_map": {"AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"}},
    "qwen3": TINY | {"max_position_embeddings": 64, "num_key_value_heads": 2, "head_dim": 12},
    "roberta": TINY | {"max_position_embeddings": 66},
    "xlm-roberta": TINY | {"max_position_embeddings": 66},
}


RERANKER_CONFIGS = {
    "deberta-v2": TINY
    | {"max_position_embeddings": 64, "relative_attention": True, "position_buckets": 16, "type_vocab_size": 0}
    | {"pos_att_type": ["p2c", "c2p"], "norm_rel_ebd": "layer_norm", "share_att_key": True}
    | {"position_biased_input": False, "pooler_hidden_size": 48},
    "qwen3": TINY_CONFIGS["qwen3"] | {"max_position_embeddings": 256, "pad_token_id": 0},
}


def write_tiny_checkpoint(folder: Path, checkpoint: Path, architecture: str) -> None:
    """A small model with seeded weights, in the layout of sentence-transformers, with the real MiniLM's tokenizer."""
    write_checkpoint(folder, checkpoint, architecture, TINY_CONFIGS[architecture])
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 48, "do_lower_case": False}))


def write_checkpoint(folder: Path, checkpoint: Path, architecture: str, settings: dict) -> None:
    """A model of this config with seeded weights; those that come with code of their own say so in their config."""
    import torch
    import transformers

    from exporters.encoder import IMPLEMENTED_HERE
    from exporters.pytorch_model import quiet

    torch.manual_seed(7)
    implementation = IMPLEMENTED_HERE.get(architecture)
    with quiet():
        if implementation is None:
            config = transformers.AutoConfig.for_model(architecture, **settings)
            model = transformers.AutoModel.from_config(config)
        else:
            config = implementation.config_class(**settings)
            model = implementation(config)
        model.save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(written | settings))
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "modules.json"):
        shutil.copyfile(checkpoint / name, folder / name)
    if architecture in {"distilbert", "modernbert"}:
        # As in the real ones: they have no token types.
        path = folder / "tokenizer_config.json"
        names = {"model_input_names": ["input_ids", "attention_mask"]}
        path.write_text(json.dumps(json.loads(path.read_text()) | names))
    (folder / "1_Pooling").mkdir()
    pooling = json.loads((checkpoint / "1_Pooling" / "config.json").read_text())
    width = getattr(config, "dim", config.hidden_size)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling | {"word_embedding_dimension": width}))


def write_reranker(folder: Path, checkpoint: Path, architecture: str = "bert", **settings: object) -> None:
    """A small cross-encoder with seeded weights and MiniLM's tokenizer, its activation stated as ms-marco's."""
    import torch
    import transformers

    from exporters.pytorch_model import quiet

    torch.manual_seed(7)
    config = {"num_labels": 1} | RERANKER_CONFIGS.get(architecture, TINY_CONFIGS.get(architecture, {})) | settings
    with quiet():
        model = transformers.AutoModelForSequenceClassification.from_config(
            transformers.AutoConfig.for_model(architecture, **config)
        )
        save_reranker(model, folder, checkpoint)


def write_reranker_on_minilm(folder: Path, checkpoint: Path) -> None:
    """The real MiniLM encoder under a seeded head: no trained cross-encoder is to be had without the Hub."""
    from benchmarks.seeded import write_head

    write_head(folder, checkpoint)


def save_reranker(model: object, folder: Path, checkpoint: Path) -> None:
    model.save_pretrained(folder)
    edit_config(folder, sentence_transformers={"activation_fn": "torch.nn.modules.linear.Identity"})
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copyfile(checkpoint / name, folder / name)
    if json.loads((folder / "config.json").read_text())["model_type"] != "bert":
        path = folder / "tokenizer_config.json"
        names = {"model_input_names": ["input_ids", "attention_mask"]}
        path.write_text(json.dumps(json.loads(path.read_text()) | names))


@pytest.fixture(scope="session")
def reranker_checkpoint(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small cross-encoder of the architecture of ms-marco's."""
    folder = tmp_path_factory.mktemp("reranker") / "tiny-reranker"
    write_reranker(folder, checkpoint, max_position_embeddings=128)
    return folder


@pytest.fixture(scope="session")
def reranker_bundle(reranker_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The int8 bundle of a small cross-encoder."""
    out = tmp_path_factory.mktemp("bundles") / "tiny-reranker-int8"
    return export(str(reranker_checkpoint), precision=Precision.INT8, out=out).bundle


@pytest.fixture(scope="session")
def tiny_checkpoint_base(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT; see `tiny_checkpoint` for one that a test may change."""
    folder = tmp_path_factory.mktemp("tiny") / "tiny-bert"
    write_tiny_checkpoint(folder, checkpoint, "bert")
    return folder


@pytest.fixture
def tiny_checkpoint(tiny_checkpoint_base: Path, tmp_path: Path) -> Path:
    """A copy of the small BERT that a test may change."""
    target = tmp_path / "tiny-bert"
    shutil.copytree(tiny_checkpoint_base, target)
    return target


def edit_config(folder: Path, **changes: object) -> None:
    """Change the config.json of a checkpoint, or of one of its modules."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@dataclass(frozen=True)
class Finished:
    """A command that ran to its end."""

    code: int
    out: bytes
    err: str


@pytest.fixture
def edgekit(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Finished]:
    """Run a command line in this process, as the console script does, and return what it printed and its exit code."""
    from toolkit.cli import cli, exit_code_of

    def run(*arguments: object, stdin: bytes = b"", tty: bool = False) -> Finished:
        buffer = io.BytesIO(stdin)
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=buffer, isatty=lambda: tty))
        capfdbinary.readouterr()
        code = exit_code_of(lambda: cli.main([str(argument) for argument in arguments], standalone_mode=False))
        captured = capfdbinary.readouterr()
        return Finished(code, captured.out, captured.err.decode("utf-8"))

    return run


def on_terminal(arguments: Sequence[str], *, stdin: int | None = None, env: dict[str, str] | None = None) -> str:
    """Run a command whose stderr is a terminal, and return what it showed there."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(arguments, stdin=stdin, stdout=subprocess.DEVNULL, stderr=theirs, env=env)
    os.close(theirs)
    shown = b""
    while block := read_terminal(ours):
        shown += block
    os.close(ours)
    assert process.wait() == 0
    return shown.decode()


def read_terminal(ours: int) -> bytes:
    """What comes next from the other end of a terminal, b"" when that is closed; fails when nothing comes."""
    assert select.select([ours], [], [], 60)[0], "nothing was shown for a minute"
    try:
        return os.read(ours, 4096)
    except OSError:  # Linux's answer when the other end is closed
        return b""


ADA, BOB, EVE = "hf_SecretOfAda0001", "hf_SecretOfBob0002", "hf_SecretOfEve0003"
REVOKED, EXPIRED = "hf_SecretRevoked0004", "hf_SecretExpired0005"
SECRETS = (ADA, BOB, EVE, REVOKED, EXPIRED)
SMALL_FILES = {
    "config.json": b'{"model_type": "bert"}',
    "model.safetensors": bytes(300_000),
    "tokenizer.json": b"{}",
    "modules.json": b"[]",
    "README.md": b"---\nlicense: apache-2.0\n---\n",
    "pytorch_model.bin": bytes(1000),
    "onnx/model.onnx": bytes(1000),
}


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


DOWNLOAD = """
import sys
from exporters.sources import find_checkpoint
find_checkpoint(sys.argv[1])
assert "torch" not in sys.modules
"""


@dataclass
class HubUser:
    """Runs edgekit in a process of its own, as someone whose home is empty and whose Hub is the local one."""

    home: Path
    environment: dict[str, str]

    def run(
        self, *arguments: object, stdin: bytes = b"", prefix: Sequence[str] = (), **changes: str | None
    ) -> Finished:
        """Run a command; `changes` are environment variables. No secret and no traceback may show, whatever happens."""
        environment = self.environment | {name: value for name, value in changes.items() if value is not None}
        for name in [name for name, value in changes.items() if value is None]:
            environment.pop(name, None)
        command = [*prefix, sys.executable, "-m", "toolkit", *map(str, arguments)]
        finished = subprocess.run(
            command, input=stdin, capture_output=True, env=environment, check=False, cwd=self.home
        )
        shown = finished.stdout + finished.stderr
        assert b"Traceback" not in shown, shown.decode()
        for secret in SECRETS:
            assert secret.encode() not in shown
        return Finished(finished.returncode, finished.stdout, finished.stderr.decode())

    def download(self, source: str) -> None:
        """Do of an export what comes first, in a process that ends before it loads torch."""
        subprocess.run(
            [sys.executable, "-c", DOWNLOAD, source],
            env=self.environment,
            check=True,
            capture_output=True,
            cwd=self.home,
        )

    @property
    def token_file(self) -> Path:
        return self.home / ".cache" / "huggingface" / "token"

    def write_token(self, content: str | bytes, mode: int = 0o600) -> None:
        """Put a token file there as a person would."""
        self.token_file.parent.mkdir(parents=True, exist_ok=True)
        self.token_file.write_bytes(content if isinstance(content, bytes) else content.encode())
        self.token_file.chmod(mode)


def user_of(hub: LocalHub, home: Path, packages: Path | None = None) -> HubUser:
    home.mkdir(exist_ok=True)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "HF_ENDPOINT": hub.endpoint,
        "EDGEKIT_TOKEN_HOST": hub.host,
        # As in this process, and for the same reason.
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(map(str, [packages, ROOT] if packages is not None else [ROOT])),
    }
    return HubUser(home, environment)


ROOT = Path(__file__).parents[1]


@pytest.fixture
def user(hub: LocalHub, tmp_path: Path) -> HubUser:
    """Someone with the huggingface_hub that an export runs with."""
    return user_of(hub, tmp_path / "home")


@pytest.fixture(params=[None, *HUB_VERSIONS], ids=["as-installed", *HUB_VERSIONS])
def any_user(request: pytest.FixtureRequest, hub: LocalHub, tmp_path: Path) -> HubUser:
    """Someone with each generation of huggingface_hub in turn."""
    version = request.param
    return user_of(hub, tmp_path / "home", hub_folder(version) if version is not None else None)
