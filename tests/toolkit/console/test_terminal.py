"""Control characters from bundles, checkpoints and the Hub do not reach a terminal."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ortkit import Bundle
from ortkit.runtime import errors
from ortkit.runtime.bundle.manifest import Certificate
from ortkit.runtime.bundle.records import write_record
from ortkit.toolkit.cli import exit_code_of
from ortkit.toolkit.console.progress import StageProgress
from ortkit.toolkit.console.terminal import escaped, escaped_json, program_name, without_controls
from ortkit.toolkit.io.writers import object_to_json
from tests.commands import Finished
from tests.hub_server import LocalHub
from tests.hub_users import SMALL_FILES, HubUser

Ortkit = Callable[..., Finished]
HOSTILE = "\x1b[2J\x1b]0;owned\x07\rfake\nerror: forged\x9b31m\u202egnp.exe\u2028\U000e0041\ufeff"
SHOWN = r"\x1b[2J\x1b]0;owned\x07\rfake\nerror: forged\x9b31m\u202egnp.exe\u2028\U000e0041\ufeff"
OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029\ufeff\U000e0041]")


def test_control_characters_are_escaped_as_in_python() -> None:
    assert escaped(HOSTILE) == SHOWN
    assert escaped("half\ud800") == r"half\ud800"


@pytest.mark.parametrize("text", ["plain", "Größe, 東京, naïve", "👩‍👩‍👧", "می‌خواهم", "a\u00a0b", "C:\\x1b"])
def test_text_of_all_scripts_is_unchanged(text: str) -> None:
    assert escaped(text) == escaped_json(text) == without_controls(text) == text


def test_long_lines_are_shortened() -> None:
    assert escaped("a" * 3000 + "end") == "a" * 1600 + " [1003 more characters] " + "a" * 397 + "end"


def test_json_means_the_same() -> None:
    value = {HOSTILE: [HOSTILE, "👩‍👩‍👧", "\ud800", 1.5]}
    written = escaped_json(json.dumps(value, ensure_ascii=False, indent=2))

    assert json.loads(written) == value
    assert not OBEYED.search(written)
    assert json.loads(object_to_json(value)) == value
    assert not OBEYED.search(object_to_json(value).decode())


def test_texts_keep_lines_tabs_and_marks_of_direction() -> None:
    assert without_controls("a\n\tb\u200fج\r\x1b[1m\u202ec") == "a\n\tb\u200fج\ufffd\ufffd[1m\ufffdc"


@pytest.mark.parametrize(
    "error", [errors.BundleError(HOSTILE, hint=HOSTILE), OSError(2, HOSTILE, HOSTILE), ValueError(HOSTILE)]
)
def test_errors(error: BaseException, capsys: pytest.CaptureFixture[str]) -> None:
    def run() -> None:
        raise error

    exit_code_of(run)

    shown = capsys.readouterr().err
    assert SHOWN in shown
    assert not OBEYED.search(shown)
    assert [line for line in shown.splitlines() if line.startswith("error:")] == [shown.splitlines()[0]]


def test_stages_and_notes(capsys: pytest.CaptureFixture[str]) -> None:
    progress = StageProgress()
    progress.begin(HOSTILE)
    progress.end(HOSTILE, 1.0)
    progress.note(HOSTILE)

    assert capsys.readouterr().err == f"    1.0 s {SHOWN}\nnote: {SHOWN}\n"


def hostile_bundle(bundle: Bundle, folder: Path) -> Path:
    """A bundle with control characters in all of its free texts."""
    shutil.copytree(bundle.path, folder)
    manifest = write_record(bundle.manifest)
    manifest |= {"name": HOSTILE, "architecture": HOSTILE, "made_with": {HOSTILE: HOSTILE}}
    manifest["source"] |= dict.fromkeys(("resolved", "origin", "revision", "license"), HOSTILE)
    manifest["certificate"] = write_record(Certificate(HOSTILE, HOSTILE, "", 1, {HOSTILE: 0.5}, ()))
    manifest["decoder"]["chat"] = {"template": "{{ raise_exception(messages[0].content ~ bos_token) }}"}
    manifest["decoder"]["chat"]["tokens"] = {"bos_token": HOSTILE}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize(
    "command",
    [
        ["inspect"],
        ["inspect", "--json"],
        ["inspect", "--runtime"],
        ["verify"],
        ["generate", "hello", "--max-tokens", "1"],
    ],
)
def test_a_bundle(ortkit: Ortkit, decoder_bundle: Bundle, tmp_path: Path, command: list[str]) -> None:
    folder = hostile_bundle(decoder_bundle, tmp_path / "hostile")

    finished = ortkit(command[0], folder, *command[1:])

    assert not OBEYED.search(finished.out.decode() + finished.err)
    if "--json" in command:
        assert json.loads(finished.out)["name"] == HOSTILE
    elif command[0] != "verify":
        assert SHOWN in finished.out.decode() + finished.err


def test_a_file_of_a_bundle(ortkit: Ortkit, decoder_bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(decoder_bundle.path, folder)
    (folder / "more\x1b[2J").touch()

    finished = ortkit("inspect", folder)

    assert finished.code == 7
    assert r"holds `more\x1b[2J`, which its manifest does not list" in finished.err
    assert not OBEYED.search(finished.err)


def test_the_hub(user: HubUser, hub: LocalHub) -> None:
    hub.add("org/hostile", SMALL_FILES, license=HOSTILE)

    finished = user.run("access", "org/hostile")

    assert not OBEYED.search(finished.out.decode() + finished.err)
    assert finished.code != 0 or SHOWN in finished.out.decode()


def test_the_program_is_named_as_it_can_be_typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its name if PATH finds this one, else the typed path; `ortkit` for `python -m`."""
    program = tmp_path / "my bin" / "ortkit"
    program.parent.mkdir()
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("sys.argv", [str(program)])

    assert program_name() == f"'{program}'"
    monkeypatch.setenv("PATH", str(program.parent))
    assert program_name() == "ortkit"
    monkeypatch.setattr("sys.argv", ["/somewhere/__main__.py"])
    assert program_name() == "ortkit"
