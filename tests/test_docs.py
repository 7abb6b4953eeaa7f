"""README and docs: commands print what the pages show, snippets and command lines run, figures agree."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from ortkit import Bundle, Embedder, Index
from ortkit.exporters import load_catalog
from ortkit.runtime import errors
from tests.commands import Finished
from tests.decoders import write_decoder
from tests.hub_server import LocalHub
from tests.hub_users import ADA, BOB, EVE, REVOKED, SMALL_FILES, HubUser
from tests.tiny_bundles import write_reranker

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "authentication.md"
BLOCK = re.compile(r"<!-- as: (?P<who>.*?) -->\n```console\n\$ ortkit (?P<command>.*?)\n(?P<shown>.*?)```", re.DOTALL)
PAGES = ("README.md", *(f"docs/{path.name}" for path in sorted(DOCS.glob("*.md"))))
FILES = {
    "notes.txt": "The pump does not start when it is cold.\nRope shrinks when it is wet.\nMoss is not a compass.\n",
    "manual.txt": "The pump is switched off with the red lever.\n",
    "messages.txt": "What is a pump?\nAnd a valve?\n",
    "corpus.jsonl": '{"id": 1, "text": "The needle of a compass points north."}\n{"id": 2, "text": "Priming a pump"}\n',
    "records.csv": "id,body\n1,The pump does not start\n2,Knots for wet rope\n",
    "questions.jsonl": '{"id": 1, "prompt": "Why?"}\n{"id": 2, "messages": [{"role": "user", "content": "Hello"}]}\n',
    "city.json": (
        '{"type": "object", "properties": {"city": {"enum": ["Kyoto", "Tokyo"]}}, '
        '"required": ["city"], "additionalProperties": false}'
    ),
    "moves.lark": 'start: "e4" | "d4"',
    "searches.jsonl": '{"query": "pump", "documents": ["a pump", "a rope"]}\n',
}
"""What the command lines of the pages read."""
MANUALS = {
    "manual.txt": FILES["manual.txt"],
    "pump.md": (
        "# Pump\n\nIf the pump does not start, look at the fuse.\n\n"
        "## By hand\n\nThe pump is started by hand with the crank.\n"
    ),
}
"""Files of the folder that the pages index."""
TOKENS = {"ada": ADA, "bob": BOB, "eve": EVE, "revoked": REVOKED}


def read(name: str) -> str:
    return (DOCS.parent / name).read_text("utf-8")


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
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
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


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, its language and what stands in it."""

    page: str
    line: int
    language: str
    text: str


def fenced_blocks() -> list[Block]:
    found = []
    for page in PAGES:
        text = read(page)
        found += [
            Block(page, text[: match.start()].count("\n") + 1, match[1], match[2])
            for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        ]
    return found


def in_language(language: str) -> list[object]:
    blocks = [block for block in fenced_blocks() if block.language == language]
    return [pytest.param(block, id=f"{block.page}:{block.line}") for block in blocks]


@pytest.fixture(scope="module")
def bundles(int8_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundles of the pages: the real embedder, and small ones under the names of the others."""
    folder = tmp_path_factory.mktemp("bundles")
    (folder / "all-MiniLM-L6-v2-int8").symlink_to(int8_bundle.path)
    write_reranker(folder / "ms-marco-MiniLM-L-12-v2-int8")
    write_decoder(folder / "SmolLM2-135M-Instruct-int4")
    return folder


@pytest.fixture
def place(bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder as the pages have it."""
    (tmp_path / "bundles").symlink_to(bundles)
    (tmp_path / "docs").symlink_to(DOCS)
    (tmp_path / "manuals").mkdir()
    for name, content in MANUALS.items():
        (tmp_path / "manuals" / name).write_text(content, "utf-8")
    for name, content in FILES.items():
        (tmp_path / name).write_text(content, "utf-8")
    (tmp_path / "pages").mkdir()
    for name in ("pages.parquet", "pages/1.parquet"):
        parquet.write_table(pa.table({"id": [1], "body": ["The pump does not start"]}), tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(DOCS / "examples")  # the pages say to copy them
    monkeypatch.delenv("ORTKIT_BUNDLES", raising=False)
    return tmp_path


@pytest.mark.parametrize("block", in_language("python"))
def test_the_snippets_run(
    block: Block, place: Path, tiny_checkpoint_base: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (place / "my-finetuned-minilm").symlink_to(tiny_checkpoint_base)

    exec(compile(block.text, block.page, "exec"), {})

    shown = capfd.readouterr().out
    if "water pump broken" in block.text:
        assert shown.splitlines() == ["(3, 384)", "The pump does not start"]
    assert len(shown) > 3, "each snippet prints what it computed"


@pytest.mark.parametrize("block", in_language("sh"))
def test_the_command_lines_run(block: Block, place: Path, ortkit: Callable[..., Finished]) -> None:
    if "manuals.index" in block.text and "ortkit index" not in block.text:
        Index.build(place / "manuals.index", place / "manuals", place / "bundles" / "all-MiniLM-L6-v2-int8").close()
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.shlex(substituted(line), posix=True, punctuation_chars="|<>")
        words.whitespace_split = True
        words.commenters = "#"
        stdin = b""
        for command in split_at(list(words), "|"):
            stdin = run_command(command, stdin, ortkit)


def substituted(line: str) -> str:
    """A command line with `$(cat FILE)` replaced by the text of the file, as a shell does."""
    return re.sub(r"\$\(cat (\S+)\)", lambda match: Path(match[1]).read_text("utf-8").rstrip("\n"), line)


def split_at(words: list[str], mark: str) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for word in words:
        if word == mark:
            parts.append([])
        else:
            parts[-1].append(word)
    return [part for part in parts if part]


def run_command(words: list[str], stdin: bytes, ortkit: Callable[..., Finished]) -> bytes:
    """Run a command of a pipeline, and return what it writes to the next one."""
    if "<" in words:
        place = words.index("<")
        stdin = Path(words[place + 1]).read_bytes()
        del words[place : place + 2]
    target = None
    if ">" in words:
        place = words.index(">")
        target = Path(words[place + 1])
        del words[place : place + 2]
    program, *arguments = words
    if program == "cat":
        out = b"".join(Path(name).read_bytes() for name in arguments)
    elif program == "python":
        out = run_example(Path(arguments[0]).name, *arguments[1:]).encode()
    else:
        assert program == "ortkit", f"{program} is not a command that the tests can run"
        finished = ortkit(*arguments, stdin=stdin)
        assert finished.code == 0, f"{words}: {finished.err}"
        out = finished.out
    assert out or "--output" in arguments or "--save-prefix" in arguments, f"{words} printed nothing"
    if target is None:
        return out
    target.write_bytes(out)
    return b""


def command_lines() -> list[object]:
    """What the pages give as `ortkit COMMAND ...`, in blocks and in the text."""
    found = set()
    for page in PAGES:
        text = read(page)
        in_blocks = "\n".join(block.text for block in fenced_blocks() if block.page == page)
        quoted = "\n".join(re.findall(r"`([^`]+)`", re.sub(r"(?s)```.*?```", "", text)))
        found |= {(page, line) for line in re.findall(r"(?<!from )\bortkit [a-z][^|#`\n]*", f"{in_blocks}\n{quoted}")}
    return [pytest.param(line, id=f"{page}: {line[:60]}") for page, line in sorted(found)]


@pytest.mark.parametrize("line", command_lines())
def test_the_pages_name_commands_and_options_that_there_are(line: str) -> None:
    from ortkit.toolkit.cli import cli

    name = line.split()[1].rstrip(".,:;)")
    assert name in cli.commands, f"`ortkit {name}` is not a command"
    parameters = cli.commands[name].params
    options = {"--help", *(name for option in parameters for name in (*option.opts, *option.secondary_opts))}
    assert set(re.findall(r"(?<=\s)--[a-z][a-z-]*", line)) <= options


def the_one(pattern: str, text: str) -> str:
    (only,) = re.findall(pattern.replace(" ", r"\s+"), text)
    return str(only)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them, and its own."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"(?ms)^```.*?^```$", "", text), re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r'<a id="([^"]+)">', text))


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", "benchmarks/README.md"])
def test_links_lead_somewhere(page: str) -> None:
    folder = (DOCS.parent / page).parent
    for target in re.findall(r"\]\(([^)\s]+)\)", read(page)):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        found = folder / path if path else DOCS.parent / page
        assert found.exists(), f"{page} links to {target}"
        assert not anchor or anchor in anchors(found.read_text("utf-8")), f"{page} links to {target}"


def test_the_page_on_errors_has_every_class_in_the_row_of_its_exit_code() -> None:
    rows = dict(re.findall(r"^\| (\d+) \|([^|]*)\|", read("docs/errors.md"), re.MULTILINE))
    classes = {name: found for name, found in vars(errors).items() if isinstance(found, type) and name != "ClassVar"}

    assert set(rows) == {*map(str, range(11)), "130", "141"}
    assert len(classes) == 18
    for name, found in classes.items():
        assert [code for code, named in rows.items() if f"`{name}`" in named] == [str(found.exit_code)], name


def test_the_programs_that_are_not_part_of_make_benchmark_are_marked() -> None:
    rows = re.findall(r"^\| `python -m (benchmarks\.\w+)` \|(.*)$", read("benchmarks/README.md"), re.MULTILINE)
    unmarked = [name for name, what in rows if "not part of `make benchmark`" not in what]

    run = re.findall(r"python -m (benchmarks\.\w+)", the_one(r"(?s)\nbenchmark:.*?\n\n", read("Makefile")))
    run.remove("benchmarks.llama_server")  # it builds a peer
    assert set(unmarked) == set(run)
    assert "then runs the ten programs" in read("benchmarks/README.md")
    assert len(run) == 10


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


def test_the_readmes_table_is_the_catalog() -> None:
    rows = re.findall(r"^\| `([\w.-]+)` \| (\w+) \| (\w+) \| ([\w.-]+) \| (\w+) \|", read("README.md"), re.MULTILINE)

    assert rows == [
        (spec.name, spec.kind.value, spec.precision.value, spec.license, "gated" if spec.gated else "public")
        for spec in load_catalog().values()
    ]


def test_the_search_of_the_demo_finds_the_right_passages(int8_bundle: Bundle) -> None:
    query = "the generator will not start on a cold morning"

    shown = run_example("search.py", int8_bundle.path, DOCS / "examples" / "passages.jsonl", query)

    lines = shown.splitlines()
    assert lines[1] == query
    assert re.match(r"  0\.\d{3}  Starting a generator in the cold: ", lines[2])


def test_the_readme_says_how_an_appliance_gets_ortkit() -> None:
    (appliance,) = re.findall(r"(?s)\*\*On the appliance\*\*(.*?)\n\n", read("README.md"))

    assert "[docs/appliance.md](docs/appliance.md)" in appliance
    assert "pip install" not in appliance
