"""docs/examples/Containerfile, which no test builds: what can be checked without a container engine.

The rules are those of hadolint that apply, by their numbers, and the file's own promises.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ortkit.toolkit.commands.serve import plan_of, serve

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


def instructions() -> list[tuple[str, str]]:
    """The instructions of the file, with continued lines joined."""
    text = (EXAMPLES / "Containerfile").read_text("utf-8")
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", " ")
    found = [line.split(maxsplit=1) for line in lines.splitlines() if line.strip()]
    return [(name, re.sub(r"\s+", " ", value)) for name, value in found]


FOUND = instructions()


def of(name: str) -> list[str]:
    return [value for found, value in FOUND if found == name]


def test_the_instructions_are_known_and_in_order() -> None:
    known = {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "CMD"}
    assert {name for name, _ in FOUND} == known | {"ENTRYPOINT"}
    assert FOUND[0] == ("ARG", "BASE=python:3.12-slim-bookworm"), "DL3006, DL3007: a tag that is not latest"
    assert of("FROM") == ["${BASE} AS build", "${BASE}"]
    for name in ("CMD", "ENTRYPOINT", "HEALTHCHECK", "USER", "STOPSIGNAL"):
        assert len(of(name)) == 1, "DL4003, DL4004, DL3012"


def test_nothing_is_fetched() -> None:
    for command in of("RUN"):
        assert not re.search(r"\b(apt|apt-get|apk|curl|wget|git|sudo|ssh)\b", command)
        for install in re.findall(r"pip install [^&]*", command):
            assert {"--no-index", "--no-deps", "--no-cache-dir"} <= set(install.split()), "DL3042"
    assert all("://" not in value for _, value in FOUND if "127.0.0.1" not in value), "DL3020: no ADD, no address"


def test_the_last_stage_copies_alone_and_has_no_rights() -> None:
    last = FOUND[max(place for place, (name, _) in enumerate(FOUND) if name == "FROM") :]
    assert "RUN" not in {name for name, _ in last}
    user = dict(last)["USER"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user), "DL3002: a number, so that Kubernetes sees that it is not root"
    after = [name for name, _ in last[[name for name, _ in last].index("USER") :]]
    assert "COPY" not in after
    assert not any("--chown" in value for value in of("COPY")), "its files are root's"
    assert not re.search(r"KEY|TOKEN|SECRET|PASSWORD", " ".join(of("ENV") + of("ARG"))), "DL3044 and the like"
    assert [value for value in of("WORKDIR") if not value.startswith("/")] == [], "DL3000"


def test_commands_are_lists() -> None:
    """DL3025: no shell between the container's engine and the process, so that SIGTERM reaches it."""
    entry, command = json.loads(of("ENTRYPOINT")[0]), json.loads(of("CMD")[0])
    check = json.loads(of("HEALTHCHECK")[0].partition("CMD ")[2])
    assert entry == ["/opt/ortkit/bin/ortkit", "serve"]
    assert check[:2] == ["/opt/ortkit/bin/python", "-c"]
    compile(check[2], "HEALTHCHECK", "exec")
    assert of("STOPSIGNAL") == ["SIGTERM"]
    options = {option for parameter in serve.params for option in parameter.opts}
    assert {argument for argument in command if argument.startswith("--")} <= options


def test_the_configuration_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """examples/serve.toml is valid, with all that is commented out too."""
    for name in ("all-MiniLM-L6-v2-int8", "SmolLM2-135M-Instruct-int4"):
        (tmp_path / "bundles" / name).mkdir(parents=True)
    monkeypatch.setenv("ORTKIT_BUNDLES", str(tmp_path / "bundles"))
    path = tmp_path / "serve.toml"
    path.write_text(re.sub(r"^#(?=\w+ = |\[)", "", (EXAMPLES / "serve.toml").read_text("utf-8"), flags=re.MULTILINE))

    plan = plan_of((), path, {})

    assert plan.bundles.keys() == {"search", "chat"}
    assert plan.indexes == {"manuals": "/srv/manuals.index"}
    assert plan.settings.api_keys == tmp_path / "api-keys"
    assert plan.settings.max_memory == 1500 << 20
