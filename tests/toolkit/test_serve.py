"""`ortkit serve`: options and configuration, `--check`, errors and exit codes; tests/toolkit/server has the rest."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ortkit.runtime.bundle.bundle import GRAPH
from ortkit.toolkit.commands.serve import plan_of
from ortkit.toolkit.search.index import Index
from ortkit.toolkit.server.settings import ServerSettings
from tests.commands import Finished
from tests.tiny_bundles import write_embedder

Ortkit = Callable[..., Finished]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_embedder(tmp_path_factory.mktemp("tiny") / "searcher").path


def config(folder: Path, content: str) -> Path:
    path = folder / "serve.toml"
    path.write_text(content, "utf-8")
    path.chmod(0o644)
    return path


def test_check(ortkit: Ortkit, bundle: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("a" * 20)
    keys.chmod(0o600)

    finished = ortkit("serve", f"small={bundle}", "--port", 0, "--api-keys", keys, "--max-memory", "8G", "--check")

    assert (finished.code, finished.err) == (0, "")
    model, key, memory, address, last = finished.out.decode().splitlines()
    assert model == f"model    small: embedder, fp32, {bundle}"
    assert key == f"keys     1 of `{keys}`"
    assert memory.startswith("memory   ")
    assert memory.endswith(" of 8,192 MiB")
    assert address.startswith("address  http://127.0.0.1:")
    assert last == "ok: nothing is served with `--check`"


@pytest.fixture(scope="module")
def index(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    (folder / "a.txt").write_text("The quick brown fox.")
    path = tmp_path_factory.mktemp("indexes") / "manuals.index"
    Index.build(path, folder, bundle).close()
    return path


def test_check_with_an_index(ortkit: Ortkit, bundle: Path, index: Path, tmp_path: Path) -> None:
    """Its bundle is served where it is not among the others; the file's settings are the same."""
    alone = ortkit("serve", "--index", index, "--port", 0, "--check")
    path = config(tmp_path, f'port = 0\nindexes = {{ other = "{index}" }}\nbundles = {{ small = "{bundle}" }}\n')
    beside = ortkit("serve", "--config", path, "--check")

    for finished, model, name in ((alone, "searcher", "manuals"), (beside, "small", "other")):
        assert (finished.code, finished.err) == (0, "")
        lines = finished.out.decode().splitlines()
        assert lines[0] == f"model    {model}: embedder, fp32, {bundle}"
        assert re.fullmatch(
            rf"index    {name}: 1 files, 1 chunks, built \d{{4}}-\d\d-\d\d \d\d:\d\d UTC with {model}, {index}",
            lines[1],
        )


def test_check_with_the_certificate(ortkit: Ortkit, bundle: Path, tmp_path: Path) -> None:
    """`--verify` replays it in a process of its own; one that does not hold ends the start."""
    good = ortkit("serve", bundle, "--port", 0, "--verify", "--check")
    wrong = Path(shutil.copytree(bundle, tmp_path / "wrong"))
    tamper(wrong)
    unverified = ortkit("serve", wrong, "--port", 0, "--check")
    bad = ortkit("serve", wrong, "--port", 0, "--verify", "--check")

    assert good.code == 0, good.err
    assert unverified.code == 0, unverified.err
    assert bad.code == 7
    assert "certificate" in bad.err or "golden" in bad.err
    assert bad.out == b""


def tamper(bundle: Path) -> None:
    """Other weights under a manifest that lists them, so that the golden vectors alone are wrong."""
    import hashlib
    import json

    import numpy as np
    import onnx
    from onnx import numpy_helper

    model = onnx.load(bundle / GRAPH)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[::-1] + np.float32(1), tensor.name))
    content = model.SerializeToString()
    (bundle / GRAPH).write_bytes(content)
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    manifest["files"][GRAPH] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    (bundle / "manifest.json").write_text(json.dumps(manifest), "utf-8")


def test_settings_of_the_file_and_of_options(bundle: Path, tmp_path: Path) -> None:
    path = config(tmp_path, f'port = 9000\nslots = 4\nmax_memory = "2G"\nbundles = {{ small = "{bundle}" }}\n')

    plan = plan_of((), path, {"slots": 2, "page": None, "cors_origins": (), "api_keys": "keys"})

    assert plan.settings == ServerSettings(port=9000, slots=2, max_memory=2 << 30, api_keys=Path("keys"))
    assert plan.bundles == {"small": str(bundle)}
    assert plan_of((str(bundle),), path, {}).bundles == {"searcher": str(bundle)}, "arguments replace the file's"
    path.write_text(f'bundles = {{ small = "{bundle}/" }}')
    assert plan.again() == {"small": f"{bundle}/"}, "SIGHUP reads the file again"
    path.write_text(f'bundles = {{ small = "{bundle}" }}\nindexes = ["manuals.index", "/a/b"]')
    assert plan_of((), path, {}).indexes == {"manuals": str(tmp_path / "manuals.index"), "b": "/a/b"}
    assert plan_of((), path, {"indexes": ("x=y",)}).indexes == {"x": "y"}, "options replace the file's"
    path.write_text('unix_socket = "/run/socket"')
    assert plan_of((str(bundle),), path, {"port": 80}).settings.unix_socket is None


def test_bundles_are_found_by_name(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORTKIT_BUNDLES", str(bundle.parent))

    assert plan_of(("searcher", "other=searcher"), None, {}).bundles == {
        "searcher": str(bundle),
        "other": str(bundle),
    }


def test_a_path_with_an_equals_sign(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(bundle, "a=b")

    assert plan_of(("x=a=b",), None, {}).bundles == {"x": "a=b"}
    with pytest.raises(ValueError, match="`a=b` cannot be the name of a model"):
        plan_of(("a=b",), None, {})


@pytest.mark.parametrize(
    ("arguments", "code", "message", "hint"),
    [
        ((), 2, "there is no bundle to serve", "name at least one: `ortkit serve BUNDLE`"),
        (("{bundle}", "{bundle}"), 2, "two bundles have the name `searcher`: `{bundle}` and `{bundle}`", "other="),
        (("nothing/there",), 5, "there is no bundle at `nothing/there`", None),
        (("{bundle}", "--host", "0.0.0.0"), 2, "other machines can reach `0.0.0.0`, and no API keys", "--api-keys"),
        (("{bundle}", "--api-keys", "none"), 5, "there is no file of API keys `none`", None),
        (("{bundle}", "--config", "none.toml"), 5, "there is no configuration `none.toml`", None),
        (
            ("{bundle}", "--config", "{config}"),
            2,
            "the configuration `{config}` has the unknown setting `prt`",
            "`port`",
        ),
        (("{bundle}", "--slots", "0"), 2, "`slots` must be from 1 to 256, not 0", None),
        (("{bundle}", "--drain-seconds", "-1"), 2, "`drain_seconds` must be from 0 to 3600, not -1.0", None),
        (("{bundle}", "--port", "70000"), 2, "invalid value for '--port'", "usage: "),
        (("{bundle}", "--max-body", "big"), 2, "invalid value for '--max-body': 'big' is not a size", "usage: "),
        (("{bundle}", "--unix-socket", "s", "--port", "1"), 2, "`--unix-socket` and `--host` or `--port`", "one of"),
        (("{bundle}", "--index", "none"), 5, "there is no index at `none`", "`ortkit index FOLDER --bundle"),
        (("--index", "{index}", "--index", "x/manuals"), 2, "two indexes have the name `manuals`: ", "--index other="),
        (
            ("--index", "a b"),
            2,
            "`a b` cannot be the name of an index: letters, digits and `._-` can",
            "--index other=",
        ),
        (("--index", "{bundle}"), 5, "there is no index at `{bundle}`", None),
        (("--index", "{damaged}"), 7, "`{damaged}/index.json` is not valid: ", "build it again"),
        (("{broken}",), 7, "`model.onnx` in the bundle `{broken}` was changed", None),
    ],
)
def test_what_cannot_be_served(
    ortkit: Ortkit,
    bundle: Path,
    index: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    code: int,
    message: str,
    hint: str | None,
) -> None:
    broken = Path(shutil.copytree(bundle, tmp_path / "broken"))
    content = (broken / GRAPH).read_bytes()
    (broken / GRAPH).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    damaged = Path(shutil.copytree(index, tmp_path / "damaged"))
    (damaged / "index.json").write_text("{")
    names = {
        "bundle": bundle,
        "broken": broken,
        "config": config(tmp_path, "prt = 1"),
        "index": index,
        "damaged": damaged,
    }
    port = [] if {"--port", "--unix-socket"} & set(arguments) else ["--port", "0"]

    finished = ortkit("serve", *(argument.format(**names) for argument in arguments), *port, "--check")

    assert finished.code == code, finished.err
    assert finished.err.startswith(f"error: {message.format(**names)}")
    assert hint is None or hint in finished.err.partition("\nhint: ")[2]
    assert finished.out == b""


def test_without_the_extra(ortkit: Ortkit, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "starlette" else find(name, *more)
    )

    finished = ortkit("serve", bundle)

    assert finished.code == 1
    assert finished.err.startswith("error: the server is not installed here: `starlette` cannot be imported\n\nhint: ")
    assert "[serve]" in finished.err


def test_sighup_while_the_server_is_imported(bundle: Path, tmp_path: Path) -> None:
    """It comes with the import of uvicorn, and the process continues with the line after it."""
    (tmp_path / "uvicorn.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGHUP)\nraise SystemExit(42)\n"
    )
    paths = os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", "")))
    command = [sys.executable, "-m", "ortkit", "serve", bundle, "--port", "0"]

    finished = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, check=False)

    assert (finished.returncode, finished.stdout, finished.stderr) == (42, b"", b"")


def test_other_commands_do_not_import_it(bundle: Path) -> None:
    code = (
        "import sys; from ortkit.toolkit.cli import cli;"
        "cli.main(['embed', sys.argv[1], 'a fox'], standalone_mode=False);"
        "print([name for name in ('starlette', 'uvicorn', 'prometheus_client', 'llguidance') if name in sys.modules])"
    )
    finished = subprocess.run([sys.executable, "-c", code, bundle], capture_output=True, text=True, check=True)

    assert finished.stdout.splitlines()[-1] == "[]"


def test_help_names_every_setting(ortkit: Ortkit) -> None:
    """Every setting has an option of its name, and the sections have all of them."""
    text = ortkit("serve", "--help").out.decode()

    assert "--index" in text
    renamed = {"allowed_hosts": "allowed_host", "cors_origins": "cors_origin"}
    for name in ServerSettings.__dataclass_fields__:
        assert f"--{renamed.get(name, name).replace('_', '-')}" in text
    assert text.index("Address:") < text.index("Models:") < text.index("Limits:") < text.index("Examples:")
