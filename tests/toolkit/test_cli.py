from __future__ import annotations

import errno
import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from ortkit import Bundle
from ortkit.runtime import errors
from ortkit.toolkit.cli import cli, exit_code_of
from ortkit.toolkit.console.help import ExampleCommand, close_names
from tests.commands import Finished

Ortkit = Callable[..., Finished]
LEAVES = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, errors.OrtkitError)]


def raising(error: BaseException) -> Callable[[], None]:
    def run() -> None:
        raise error

    return run


@pytest.mark.parametrize("error", LEAVES)
def test_every_error_ends_with_its_message_hint_and_code(
    error: type[errors.OrtkitError], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code_of(raising(error("it broke", hint="mend it"))) == error.exit_code
    assert capsys.readouterr() == ("", "error: it broke\n\nhint: mend it\n")


def test_an_error_without_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    exit_code_of(raising(errors.InputError("it broke")))

    assert capsys.readouterr().err == "error: it broke\n"


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (click.Abort(), 130, "interrupted\n"),
        (MemoryError(), 9, "error: not enough memory\n"),
        (OSError(errno.ENOSPC, "No space left on device", "out.npy"), 1, "error: `out.npy`: No space left on device\n"),
        (OSError("something"), 1, "error: something\n"),
        (
            ModuleNotFoundError("No module named 'jinja2'", name="jinja2"),
            1,
            (
                "error: the package `jinja2`, which ortkit needs, is not installed in this environment\n\n"
                "hint: install ortkit again, with its dependencies\n"
            ),
        ),
        (
            ModuleNotFoundError("No module named 'ortkit.runtime.x'", name="ortkit.runtime.x"),
            1,
            (
                "error: internal error: ModuleNotFoundError: No module named 'ortkit.runtime.x'\n\n"
                "hint: this is a bug in ortkit; set ORTKIT_TRACEBACK=1 to see the traceback\n"
            ),
        ),
        (
            ZeroDivisionError("oh"),
            1,
            (
                "error: internal error: ZeroDivisionError: oh\n\n"
                "hint: this is a bug in ortkit; set ORTKIT_TRACEBACK=1 to see the traceback\n"
            ),
        ),
    ],
)
def test_exit_codes_of_other_errors(
    error: BaseException, code: int, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code_of(raising(error)) == code
    assert capsys.readouterr().err == shown


def test_a_traceback_is_shown_on_request(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ORTKIT_TRACEBACK", "1")
    exit_code_of(raising(ZeroDivisionError("oh")))

    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_usage_errors_end_with_2(ortkit: Ortkit) -> None:
    usage = "hint: usage: ortkit [OPTIONS] COMMAND [ARGS]...; `ortkit --help` shows more\n"
    for arguments, shown in [
        (["nothing"], f"error: no such command 'nothing'\n\n{usage}"),
        (["verfy"], f"error: no such command 'verfy'. Did you mean 'verify'?\n\n{usage}"),
        (["embed", "--otuput"], "error: no such option '--otuput'"),
        (
            ["embed"],
            (
                "error: missing argument 'BUNDLE'\n\n"
                "hint: usage: ortkit embed [OPTIONS] BUNDLE [TEXTS]...; `ortkit embed --help` shows more\n"
            ),
        ),
        (["export", "x", "--precision", "int3"], "error: invalid value for '--precision': 'int3' is not one of"),
    ]:
        finished = ortkit(*arguments)
        assert (finished.code, finished.out) == (2, b"")
        assert finished.err.startswith(shown)


def test_help_and_version_end_with_0(ortkit: Ortkit) -> None:
    for command in ([], *([name] for name in cli.commands)):
        finished = ortkit(*command, "--help")
        assert finished.code == 0
        assert finished.out.startswith(b"Usage: ortkit ")
    assert ortkit("--version").out == b"ortkit, version 0.1.0\n"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["embed", "--help"]])
def test_a_reader_of_the_help_that_leaves_ends_it_quietly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    def closed(*_: object, **__: object) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("click.core.echo", closed)
    monkeypatch.setattr("click.decorators.echo", closed)

    assert exit_code_of(lambda: cli.main(arguments, standalone_mode=False)) == 141
    assert capsys.readouterr() == ("", "")


def test_without_a_command_the_help_is_shown(ortkit: Ortkit) -> None:
    finished = ortkit()

    assert finished.code == 2
    headings = re.findall(r"^(\S.*):$", finished.err, re.MULTILINE)
    assert headings == [
        "Options",
        "Hugging Face Hub",
        "Export (connected machine)",
        "Bundles",
        "Carry and install",
        "This machine",
        "Search your own files (offline)",
        "Embed, rerank and generate (offline)",
    ]
    assert re.findall(r"^  ([a-z]+) ", finished.err, re.MULTILINE)[-len(cli.commands) :] == [
        name for names in cli.headings.values() for name in names
    ]
    assert "..." not in finished.err.partition("Hub:")[2], "each description fits on 80 columns"


def test_descriptions_wrap_on_a_narrow_terminal(ortkit: Ortkit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    shown = ortkit("--help").out.decode()

    assert max(map(len, shown.splitlines())) <= 50
    for command in cli.commands.values():
        assert f"{command.name} {command.get_short_help_str(1000)}" in " ".join(shown.split())


@pytest.mark.parametrize("command", cli.commands.values(), ids=list(cli.commands))
def test_help_ends_with_examples_that_can_be_run(
    command: click.Command, ortkit: Ortkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORTKIT_BUNDLES", str(tmp_path))
    for name in ("all-MiniLM-L6-v2-int8", "ms-marco-MiniLM-L-12-v2-int8", "SmolLM2-135M-Instruct-int4"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "have.txt").touch()
    shown = ortkit(command.name, "--help").out.decode()
    assert isinstance(command, ExampleCommand)
    examples = shown.partition("\nExamples:\n")[2].splitlines()

    assert examples == [f"  {example}" for example in command.examples]
    assert examples
    for example in command.examples:
        words = shlex.split(re.sub(" [<>] [a-z.]+", "", example).removeprefix("ORTKIT_BUNDLES=/srv/models "))
        assert words[:2] == ["ortkit", command.name]
        # Parses and converts all options; raises for unknown ones and for missing arguments.
        with command.make_context("ortkit", words[2:]):
            pass


@pytest.mark.parametrize("command", cli.commands.values(), ids=list(cli.commands))
def test_sections_list_options_of_the_command(command: click.Command) -> None:
    assert isinstance(command, ExampleCommand)
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    named = [name for names in command.sections.values() for name in names]

    assert set(named) <= known
    assert len(set(named)) == len(named)


def test_close_names_are_typing_errors_beginnings_and_parts() -> None:
    known = ["all-MiniLM-L6-v2-int8", "jina-v2", "SmolLM2-int4"]

    assert close_names("all-MiniLM-L6-v2", known) == ["all-MiniLM-L6-v2-int8"]
    assert close_names("smollm2", known) == ["SmolLM2-int4"]
    assert close_names("jina", known) == ["jina-v2"]
    assert close_names("mistral", known) == []


def test_a_missing_export_stage_is_an_error_with_a_hint() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['ortkit', 'export', 'x']; "
        "from ortkit.__main__ import main; main()"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert finished.returncode == 1
    assert "error: the export stage is not installed here: `torch` cannot be imported" in finished.stderr
    assert f"hint: on the machine that exports, run `{sys.executable} -m pip install " in finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize(
    ("arguments", "closed"),
    [
        ("embed {bundle}", "<&-"),
        ("embed {bundle} hello", ">&-"),
        ("embed {bundle} --output {output}", "2>&-"),
        ("embed {bundle} --output {output}", "<&- >&- 2>&-"),
    ],
)
def test_a_stream_that_is_closed_is_empty(tiny_bundle: Bundle, tmp_path: Path, arguments: str, closed: str) -> None:
    output = tmp_path / "out.npy"
    command = f"{sys.executable} -m ortkit {arguments.format(bundle=tiny_bundle.path, output=output)} {closed}"

    finished = subprocess.run(["sh", "-c", command], input=b"", capture_output=True, check=False)

    assert (finished.returncode, finished.stdout, finished.stderr) == (0, b"", b"")
    assert output.exists() == ("--output" in arguments)


def test_an_error_does_not_need_stderr() -> None:
    finished = subprocess.run(["sh", "-c", f"{sys.executable} -m ortkit embed nothing x 2>&-"], check=False)

    assert finished.returncode == 5


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full is Linux's")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_behind_stdout_is_reported_once(unbuffered: str) -> None:
    env = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("wb") as full:
        finished = subprocess.run(
            [sys.executable, "-m", "ortkit", "models"], stdout=full, stderr=subprocess.PIPE, check=False, env=env
        )

    assert (finished.returncode, finished.stderr) == (1, b"error: No space left on device\n")


def test_ctrl_c_in_code_that_is_compiled_as_it_runs_ends_with_130() -> None:
    """As namedtuple and dataclass do during the import of torch."""
    code = (
        "import ortkit.toolkit.cli as c; c.cli = lambda: 0; "
        "c.cli.main = lambda **_: exec('raise KeyboardInterrupt'); c.main()"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)

    assert (finished.returncode, finished.stdout, finished.stderr) == (130, b"", b"interrupted\n")
