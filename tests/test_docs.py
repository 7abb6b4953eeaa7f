"""docs/authentication.md shows what commands really print, against the local Hub; examples run, and figures agree."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ortkit import Bundle, Embedder
from tests.commands import Finished
from tests.decoders import write_decoder
from tests.hub_server import LocalHub
from tests.hub_users import ADA, BOB, EVE, REVOKED, SMALL_FILES, HubUser

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "authentication.md"
BLOCK = re.compile(r"<!-- as: (?P<who>.*?) -->\n```console\n\$ ortkit (?P<command>.*?)\n(?P<shown>.*?)```", re.DOTALL)
TOKENS = {"ada": ADA, "bob": BOB, "eve": EVE, "revoked": REVOKED}


def blocks() -> list[tuple[str, str, str]]:
    return [(found["who"], found["command"], found["shown"]) for found in BLOCK.finditer(PAGE.read_text("utf-8"))]


def test_every_console_block_is_checked() -> None:
    assert len(blocks()) == PAGE.read_text("utf-8").count("```console") == 15


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


def run_example(name: str, *arguments: object) -> str:
    command = [sys.executable, DOCS / "examples" / name, *map(str, arguments)]
    finished = subprocess.run(command, cwd=DOCS.parent, capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stderr) == (0, "")
    return finished.stdout


def test_lines_without_a_vector_are_not_found(
    ortkit: Callable[..., Finished], tiny_bundle: Bundle, tmp_path: Path
) -> None:
    """Rows stay those of their lines, whatever stands between, and those of NaN are nobody's nearest."""
    texts = ["the pump", "a line\u2028in two\x85parts", "water"]
    lines = [json.dumps({"text": text}, ensure_ascii=False).encode() for text in texts]
    corpus, vectors = tmp_path / "corpus.jsonl", tmp_path / "corpus.npy"
    broken = [b"no JSON", b"\xff", b"[1]", b'{"id": 5}', b"[" * 100_000]
    corpus.write_bytes(b"\xef\xbb\xbf" + b"\n".join([lines[0], *broken, lines[1], b"", "\u3000".encode(), lines[2]]))
    assert ortkit("embed", tiny_bundle.path, "--input", corpus, "--output", vectors).code == 1

    found = [
        json.loads(line)
        for line in run_example("retrieve.py", tiny_bundle.path, corpus, vectors, "water").split("\n")[:-1]
    ]

    embedder = Embedder(tiny_bundle)
    similar = dict(zip(texts, (embedder.embed(texts) @ embedder.embed_query("water")).tolist(), strict=True))
    assert [row["text"] for row in found] == sorted(texts, key=similar.__getitem__, reverse=True)
    assert [row["similarity"] for row in found] == pytest.approx(sorted(similar.values(), reverse=True), abs=1e-6)


def test_a_passage_with_line_separators_is_one(tiny_bundle: Bundle, tmp_path: Path) -> None:
    passages = [{"title": "One", "text": "a line\u2028in two"}, {"title": "Two", "text": "water"}]
    collection = tmp_path / "passages.jsonl"
    collection.write_text("\n".join(json.dumps(passage, ensure_ascii=False) for passage in passages), encoding="utf-8")

    shown = run_example("search.py", tiny_bundle.path, collection, "water")

    assert sorted(re.findall(r"-?\d\.\d{3}  (\w+): ", shown)) == ["One", "Two"]


@pytest.mark.parametrize(
    "snippet", re.findall(r"```python\n(.*?)```", (DOCS / "generate.md").read_text("utf-8"), re.DOTALL)
)
def test_the_snippets_on_generating_run(
    snippet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_decoder(tmp_path / "bundles" / "SmolLM2-135M-Instruct-int4")
    monkeypatch.chdir(tmp_path)

    exec(compile(snippet, "docs/generate.md", "exec"), {})

    assert len(capsys.readouterr().out) > 60, "an answer of the small decoder, which never ends one itself"


def read(name: str) -> str:
    return (DOCS.parent / name).read_text("utf-8")


def the_one(pattern: str, text: str) -> str:
    (only,) = re.findall(pattern, text)
    return str(only)


def test_the_programs_that_are_not_part_of_make_benchmark_are_marked() -> None:
    rows = re.findall(r"^\| `python -m (benchmarks\.\w+)` \|(.*)$", read("benchmarks/README.md"), re.MULTILINE)
    unmarked = [name for name, what in rows if "not part of `make benchmark`" not in what]

    run = re.findall(r"python -m (benchmarks\.\w+)", the_one(r"(?s)\nbenchmark:.*?\n\n", read("Makefile")))
    assert set(unmarked) == set(run)
    assert "then runs the nine programs" in read("benchmarks/README.md")
    assert len(run) == 9


def test_the_pages_have_the_figures_of_the_benchmarks() -> None:
    measured, export, rerank = read("benchmarks/README.md"), read("docs/export.md"), read("docs/rerank.md")
    size = round(float(the_one(r"\| ortkit int4 \|.*?\|.*?\|.*?\| ([\d.]+) \|", measured)))
    tau = the_one(r"int8 has a tau of ([\d.]+\d)", measured)
    head = the_one(r"\| reranked, MiniLM under a seeded head, int8 \|.*?\|.*?\| ([\d.]+) \|", measured)
    difference = float(the_one(r"differ from sentence-transformers' by (\S+) at most", measured))

    assert f"# 4 bits, {size} MB" in export
    assert the_one(r"\n\| int4 \|.*\| (\d+) MB", export) == str(size)
    assert the_one(r"the order in int8 has a tau of\s+([\d.]+\d)", rerank) == tau
    assert the_one(r"with a mean tau of\s+([\d.]+\d)", rerank) == head
    assert float(the_one(r"fp32 logits are within ([\d.]+\d)", rerank)) == difference


def test_the_readme_says_how_an_appliance_gets_ortkit() -> None:
    before, _, after = read("README.md").partition("ortkit verify bundles/")

    assert "[docs/appliance.md](docs/appliance.md)" in before[before.index("Copy the folder") :]
    assert "pip install" not in before[before.index("Copy the folder") :] + after[: after.index("```")]
