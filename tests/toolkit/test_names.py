"""File names and texts outside of the locale's encoding, and a deleted working directory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ortkit import Bundle
from ortkit.runtime.output_path import NameInBytes, is_utf8, native
from tests.commands import Finished

Ortkit = Callable[..., Finished]
NOT_UTF8 = os.fsdecode(b"b\xfcndel")
C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0"}


def run(*arguments: object, cwd: Path, **environment: str) -> Finished:
    finished = subprocess.run(
        [sys.executable, "-m", "ortkit", *map(os.fsencode, map(str, arguments))],
        capture_output=True,
        check=False,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])} | environment,
    )
    return Finished(finished.returncode, finished.stdout, finished.stderr.decode("utf-8", "surrogateescape"))


def test_names_are_handed_over_as_their_bytes() -> None:
    assert native(Path("größe")) == "größe"
    name = native(Path(NOT_UTF8))
    assert isinstance(name, NameInBytes)
    assert os.fspath(name) == b"b\xfcndel"
    assert not is_utf8(Path(NOT_UTF8))


def test_bundles_in_folders_of_any_name(
    ortkit: Ortkit, tiny_bundle: Bundle, reranker_bundle: Bundle, decoder_bundle: Bundle, tmp_path: Path
) -> None:
    for bundle, arguments in (
        (tiny_bundle, ["embed", "a text"]),
        (tiny_bundle, ["verify"]),
        (tiny_bundle, ["inspect"]),
        (reranker_bundle, ["rerank", "--query", "q", "a document"]),
        (decoder_bundle, ["generate", "a prompt", "--max-tokens", 3]),
    ):
        command, *rest = arguments
        folder = tmp_path / command / NOT_UTF8
        shutil.copytree(bundle.path, folder)
        expected = ortkit(command, bundle.path, *rest)
        shown = f"{tmp_path}/{command}/b\\udcfcndel".encode()
        out = expected.out.replace(os.fsencode(bundle.path), shown)
        assert ortkit(command, folder, *rest) == Finished(0, out, expected.err)


@pytest.mark.parametrize("broken", ["model.onnx", "tokenizer.json"])
def test_a_broken_bundle_in_a_folder_of_any_name(
    ortkit: Ortkit, tiny_bundle: Bundle, tmp_path: Path, broken: str
) -> None:
    folder = tmp_path / NOT_UTF8
    shutil.copytree(tiny_bundle.path, folder)
    (folder / broken).write_bytes(b"x" * (folder / broken).stat().st_size)

    finished = ortkit("embed", folder, "a text")

    assert finished.code == 7
    assert finished.err.startswith(f"error: `{broken}` in the bundle `{tmp_path}/b\\udcfcndel` was changed")


@pytest.mark.parametrize("place", ["source", "out"])
def test_an_export_says_that_its_libraries_need_utf8(
    ortkit: Ortkit, tiny_checkpoint: Path, tmp_path: Path, place: str
) -> None:
    folder = tmp_path / NOT_UTF8
    source, out = (folder, tmp_path / "out") if place == "source" else (tiny_checkpoint, folder)
    if place == "source":
        shutil.copytree(tiny_checkpoint, source)

    finished = ortkit("export", source, "--out", out)

    assert (finished.code, finished.out) == (2, b"")
    assert finished.err == (
        f"error: the path `{tmp_path}/b\\udcfcndel` is not UTF-8, which libraries of the export need\n\n"
        "hint: give the folder another name\n"
    )
    assert not out.exists()


def test_a_locale_that_knows_only_ascii(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Arguments are decoded as UTF-8, JSON is written in UTF-8, and messages are readable."""
    shutil.copytree(tiny_bundle.path, tmp_path / "bündel")
    finished = run("embed", "bündel", "größer", "東京", cwd=tmp_path, **C_LOCALE)

    assert (finished.code, finished.err) == (0, "")
    assert [json.loads(line)["text"] for line in finished.out.splitlines()] == ["größer", "東京"]
    missing = run("embed", "nichts-größer", "a", cwd=tmp_path, **C_LOCALE)
    assert missing.code == 5
    assert missing.err.startswith("error: there is no bundle at `nichts-größer`\n")
    (tmp_path / "größe.jsonl").write_text('{"text": "größer"}\n', encoding="utf-8")
    read = run("embed", "bündel", "--input", "größe.jsonl", "--output", "länge.jsonl", cwd=tmp_path, **C_LOCALE)
    assert (read.code, read.err) == (0, "")
    assert json.loads((tmp_path / "länge.jsonl").read_bytes())["text"] == "größer"
    refused = run("export", "bündel", cwd=tmp_path, **C_LOCALE)
    assert refused.code == 2
    assert refused.err.endswith("hint: the encoding of the locale is another: set `PYTHONUTF8=1`\n")


def test_an_output_in_latin_1(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Other characters are escaped, in JSON with JSON escapes."""
    manifest = tiny_bundle.path / "manifest.json"
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle.path, folder)
    content = manifest.read_text(encoding="utf-8").replace('"tiny-bert"', '"größe-東京-🙂"')
    (folder / "manifest.json").write_text(content, encoding="utf-8")

    shown = run("inspect", folder, cwd=tmp_path, PYTHONIOENCODING="latin-1")
    as_json = run("inspect", folder, "--json", cwd=tmp_path, PYTHONIOENCODING="latin-1")

    assert (shown.code, shown.err) == (0, "")
    assert "größe-\\u6771\\u4eac-\\ud83d\\ude42".encode("latin-1") in shown.out
    assert json.loads(as_json.out.decode("latin-1"))["name"] == "größe-東京-🙂"
    error = run("embed", "nothing-größe-東京", "a", cwd=tmp_path, PYTHONIOENCODING="latin-1")
    assert (error.code, "Traceback" in error.err) == (5, False)


def test_a_removed_working_directory(ortkit: Ortkit, tiny_bundle: Bundle, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    before = Path.cwd()
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    try:
        exported = ortkit("export", "all-MiniLM-L6-v2", "--offline")
        embedded = ortkit("embed", tiny_bundle.path, "a text")
        missing = ortkit("embed", "bundle", "a text")
        written = ortkit("embed", tiny_bundle.path, "a text", "--output", "out.npy")
        logged = ortkit("verify", tiny_bundle.path)
    finally:
        os.chdir(before)

    assert exported.code == 5
    assert exported.err == (
        "error: the working directory of this process was removed\n\nhint: change to one that exists: `cd ~`\n"
    )
    # Commands with absolute paths do not need a working directory.
    assert (embedded.code, logged.code) == (0, 0)
    assert missing.err.startswith("error: there is no bundle at `bundle`\n")
    assert written.err == "error: `out.npy` cannot be written: No such file or directory\n"
