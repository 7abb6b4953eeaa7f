# ruff: noqa: E501 - texts as they are printed
from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ortkit.toolkit.doctor.environment import VARIABLES, check_secrets, check_variables
from ortkit.toolkit.doctor.host import Folder
from tests.toolkit.doctor.hosts import host, text_of

ROOT = Path(__file__).parents[3]
ALL = ", ".join(VARIABLES)


def test_all_variables_that_the_code_reads_are_known() -> None:
    sources = [path for name in ("runtime", "exporters", "toolkit") for path in (ROOT / name).rglob("*.py")]
    named = {found for path in sources for found in re.findall(r"ORTKIT_[A-Z_]+[A-Z]", path.read_text("utf-8"))}

    assert len(sources) > 100
    assert named == set(VARIABLES)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ["ok variables: variables of ortkit: none is set"]),
        ({"ORTKIT_CACHE": "/c"}, ["ok variables: variables of ortkit: ORTKIT_CACHE"]),
        (
            {"ORTKIT_BUNDELS": "/srv"},
            [
                (
                    "warning variables: ortkit reads no variable `ORTKIT_BUNDELS`\n"
                    "why: a setting that is misspelt has no effect\n"
                    f"do: did you mean `ORTKIT_BUNDLES`? remove it: `unset ORTKIT_BUNDELS`; variables: {ALL}"
                )
            ],
        ),
        (
            {"ortkit_cache": "/c"},
            [
                (
                    "warning variables: ortkit reads no variable `ortkit_cache`\n"
                    "why: a setting that is misspelt has no effect\n"
                    f"do: did you mean `ORTKIT_CACHE`? remove it: `unset ortkit_cache`; variables: {ALL}"
                )
            ],
        ),
        (
            {"EDGEKIT_POLICY": "/p"},
            [
                (
                    "warning variables: ortkit reads no variable `EDGEKIT_POLICY`\n"
                    "why: ortkit had another name before its release\n"
                    f"do: did you mean `ORTKIT_POLICY`? remove it: `unset EDGEKIT_POLICY`; variables: {ALL}"
                )
            ],
        ),
        (
            {"ORTKIT_XYZZY_QUUX": "1"},
            [
                (
                    "warning variables: ortkit reads no variable `ORTKIT_XYZZY_QUUX`\n"
                    "why: a setting that is misspelt has no effect\n"
                    f"do: remove it: `unset ORTKIT_XYZZY_QUUX`; variables: {ALL}"
                )
            ],
        ),
        (
            {"ORTKIT_MAX_MEMORY": "lots"},
            [
                (
                    "error variables: `ORTKIT_MAX_MEMORY` must be a size such as 500M or 4G, not `lots`\n"
                    "why: ortkit opens no model with a limit that it cannot read\n"
                    "do: give a size: `export ORTKIT_MAX_MEMORY=512M`\nexit: 2"
                )
            ],
        ),
        (
            {"ORTKIT_TOKEN_HOST": "hub.example.org"},
            [
                (
                    "note variables: ORTKIT_TOKEN_HOST lets `hub.example.org` have the Hub's token\n"
                    "why: an appliance needs no token\ndo: `unset ORTKIT_TOKEN_HOST`"
                )
            ],
        ),
    ],
)
def test_variables(environment: dict[str, str], expected: list[str]) -> None:
    assert [text_of(found) for found in check_variables(host(environment=environment))] == expected


def test_variables_that_name_nothing(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")
    bundles = Folder(Path(gone), exists=False, writable=True, free=None)
    environment = {"ORTKIT_BUNDLES": gone, "ORTKIT_POLICY": gone}

    assert [text_of(found) for found in check_variables(host(environment=environment, bundles=bundles))] == [
        (
            f"warning variables: ORTKIT_BUNDLES names `{gone}`, which is not a folder\n"
            f"why: no bundle is found by its name\ndo: make it, or name another: `mkdir -p {gone}`"
        ),
        (
            f"error variables: ORTKIT_POLICY names `{gone}`, which is not a file\n"
            "why: ortkit opens no bundle without the policy that was asked for\n"
            "do: name the file, or `unset ORTKIT_POLICY`\nexit: 5"
        ),
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ["ok secrets: no token of the Hub and no proxy"]),
        (
            {"environment": {"HF_TOKEN": "hf_secret", "https_proxy": "http://ada:pw@proxy"}, "token_files": ("/t",)},
            [
                (
                    "note secrets: a token of the Hugging Face Hub is here: HF_TOKEN, `/t`\n"
                    "why: bundles run without it, and whoever reads this machine can use it\n"
                    "do: run `ortkit logout` here, and remove the variable where it is set; `export` needs the token on "
                    "the connected machine alone"
                ),
                (
                    "note secrets: a proxy is set: https_proxy\n"
                    "why: running bundles opens no connection; `export`, `login` and `access` use it"
                ),
            ],
        ),
    ],
)
def test_secrets(changes: dict[str, Any], expected: list[str]) -> None:
    found = list(check_secrets(host(**changes)))

    assert [text_of(one) for one in found] == expected
    assert "hf_secret" not in repr(found)
    assert "pw" not in repr(found)
