"""Hints name existing commands, their options, and values that the options take."""

from __future__ import annotations

import ast
import inspect
import re
from functools import cache
from pathlib import Path

import click
import pytest

from ortkit.toolkit.cli import cli

ROOT = Path(__file__).parents[2]


def installer_options() -> set[str]:
    """Options that the installer's parser adds, of all its commands."""
    source = (ROOT / "runtime" / "installer" / "cli.py").read_text(encoding="utf-8")
    return set(re.findall(r'"(--[a-z][a-z-]*)"', source))


OF_OTHER_PROGRAMS = {"--merge", "--no-deps", "--version"}
OF_THE_INSTALLER = installer_options()
"""What `sh FILE.kit install` takes."""
OF_ALL = {"--help"}
COMMAND = rf"(?:^ortkit (?={'|'.join(cli.commands)})|`ortkit )([a-z]+)([^`]*)"


@cache
def nodes_of(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def hints_in(path: Path) -> list[str]:
    """The texts of hints, with {} for what is put into them."""
    found = []
    for node in nodes_of(path):
        if (isinstance(node, ast.keyword) and node.arg == "hint") or (
            isinstance(node, ast.Assign)
            and any(isinstance(target, ast.Name) and target.id.lower().endswith("hint") for target in node.targets)
        ):
            found += [text for part in alternatives(node.value) if (text := text_of(part))]
    return found


def alternatives(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.IfExp):
        return [*alternatives(node.body), *alternatives(node.orelse)]
    return [node]


def text_of(node: ast.expr) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def options_of(command: click.Command) -> dict[str, click.Option]:
    return {
        name: parameter
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for name in (*parameter.opts, *parameter.secondary_opts)
    }


@cache
def imports_of(path: Path) -> set[Path]:
    """The modules of toolkit that a module imports, anywhere in it."""
    found = set()
    for node in nodes_of(path):
        if isinstance(node, ast.ImportFrom) and node.level:
            package = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            for module in (package, *(package / alias.name for alias in node.names)):
                file = module.with_suffix(".py")
                if file.is_relative_to(ROOT / "toolkit") and file.is_file():
                    found.add(file)
    return found


@cache
def commands_that_use() -> dict[Path, set[str]]:
    """Module of toolkit -> the commands that it is imported for."""
    found: dict[Path, set[str]] = {}
    for name, command in cli.commands.items():
        assert command.callback is not None
        pending = [Path(inspect.getfile(inspect.unwrap(command.callback))).resolve()]
        while pending:
            module = pending.pop()
            if name not in found.setdefault(module, set()):
                found[module].add(name)
                pending += imports_of(module)
    return found


# Parsed by the tests: what is done here, every process of the tests does.
MODULES = [
    path
    for package in ("runtime", "exporters", "toolkit")
    for path in sorted((ROOT / package).rglob("*.py"))
    if "hint" in path.read_text(encoding="utf-8").lower()
]


def test_hints_are_found() -> None:
    toolkit = [path for path in MODULES if path.is_relative_to(ROOT / "toolkit")]
    users = commands_that_use()
    assert sum(len(hints_in(path)) for path in toolkit) > 40
    assert sum(len(hints_in(path)) for path in MODULES if path not in toolkit) > 60
    assert all(users.get(path) for path in toolkit if hints_in(path) and path.name != "cli.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_hints_can_be_followed(path: Path) -> None:
    for hint in hints_in(path):
        check_hint(path, hint)


def check_hint(path: Path, hint: str) -> None:
    names = commands_that_use().get(path) or set(cli.commands)
    # Options after a command's name are that command's.
    named = re.findall(COMMAND, hint)
    for command, text in named:
        assert command in cli.commands, hint
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", text):
            assert option in options_of(cli.commands[command]).keys() | OF_ALL, f"`{command}` has no `{option}`: {hint}"
    rest = re.sub(COMMAND, "", hint)
    for option, value in re.findall(r"(?<![\w-])(--[a-z][a-z-]*)(?:[ =]([\w.]+))?", rest):
        having = [
            name for name in names | {command for command, _ in named} if option in options_of(cli.commands[name])
        ]
        own = OF_THE_INSTALLER if path.parent.name == "installer" else set()
        assert having or option in OF_OTHER_PROGRAMS | OF_ALL | own, (
            f"no command of {sorted(names)} has `{option}`: {hint}"
        )
        for name in having:
            kind = options_of(cli.commands[name])[option].type
            if isinstance(kind, click.Choice) and value and f"`{option} {value}" in rest:
                assert value in kind.choices, hint
