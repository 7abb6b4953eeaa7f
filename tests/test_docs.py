"""docs/authentication.md shows real commands and what they really print, against the local Hub."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.hub_server import LocalHub
from tests.hub_users import ADA, BOB, EVE, REVOKED, SMALL_FILES, HubUser

PAGE = Path(__file__).parents[1] / "docs" / "authentication.md"
BLOCK = re.compile(r"<!-- as: (?P<who>.*?) -->\n```console\n\$ edgekit (?P<command>.*?)\n(?P<shown>.*?)```", re.DOTALL)
TOKENS = {"ada": ADA, "bob": BOB, "eve": EVE, "revoked": REVOKED}


def blocks() -> list[tuple[str, str, str]]:
    return [(found["who"], found["command"], found["shown"]) for found in BLOCK.finditer(PAGE.read_text("utf-8"))]


def test_every_console_block_is_checked() -> None:
    assert len(blocks()) == PAGE.read_text("utf-8").count("```console") == 14


@pytest.mark.parametrize(("who", "command", "shown"), blocks())
def test_the_page_shows_what_happens(user: HubUser, hub: LocalHub, who: str, command: str, shown: str) -> None:
    hub.add("sentence-transformers/all-MiniLM-L6-v2", SMALL_FILES)
    hub.add("mistralai/Mistral-7B-Instruct-v0.1", SMALL_FILES, gated="auto")
    stdin = b""
    environment: dict[str, str] = {}
    for setting in who.split("; "):
        if setting.startswith("file "):
            user.write_token(TOKENS[setting.removeprefix("file ")])
        elif setting.startswith("stdin: "):
            stdin = TOKENS[setting.removeprefix("stdin: ")].encode()
        elif "=" in setting:
            name, _, value = setting.partition("=")
            environment[name] = value

    finished = user.run(*shlex.split(command), stdin=stdin, **environment)

    printed = finished.out.decode() + finished.err
    assert printed.replace(str(user.home), "~").replace(hub.host, "huggingface.co") == shown
