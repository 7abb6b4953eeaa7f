"""Collections to search whose answers are known: a document's own summary is the query (known-item search).

Known-item search as in Azzopardi, de Rijke and Balog (SIGIR 2007), but with queries that people wrote. Nothing is kept
in the repository: the texts are read from this machine's packages.
"""

from __future__ import annotations

import ast
import json
import platform
import re
import subprocess
import sysconfig
import tokenize
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from benchmarks.accuracy import PASSAGES, QUESTIONS, question_set
from benchmarks.docstrings import DEFINITIONS, docstring_of

SEED = 23
FEWEST_QUERY_WORDS, MOST_QUERY_WORDS = 3, 30
FEWEST_DOCUMENT_WORDS = 20
NOT_DOCUMENTED = {"__pycache__", "idlelib", "lib2to3", "site-packages", "test", "tests", "turtledemo"}
"""Folders of the standard library whose docstrings are left out."""
APT_HELPER = "/usr/lib/apt/apt-helper"
APT_HINT = (
    "the lists with Debian's long descriptions are not on this machine; `apt-get update -o Acquire::Languages=en` "
    "fetches them, and with `-o Dir::State::lists=FOLDER` into a folder of its own, which `--apt-lists` names"
)


@dataclass(frozen=True)
class Item:
    """A document and the query that its author wrote for it."""

    name: str
    """Of the file."""
    summary: str
    text: str


@dataclass(frozen=True)
class Query:
    """A query and the file that answers it."""

    text: str
    answer: str


@dataclass(frozen=True)
class Collection:
    """Files to search, and queries with one relevant file each."""

    name: str
    source: str
    """Which texts they are, of which version and license."""
    files: dict[str, str]
    queries: list[Query]

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        for name, text in self.files.items():
            (folder / name).write_text(text, encoding="utf-8")


def questions() -> Collection:
    """The 240 questions of `benchmarks.accuracy`, on 80 passages among all other texts at hand."""
    titles = [json.loads(line)["title"] for line in PASSAGES.read_text(encoding="utf-8").splitlines()]
    retrieval = question_set()
    names = [f"{place:04}.md" for place in range(len(retrieval.passages))]
    files = dict(zip(names, retrieval.passages, strict=True))
    for name, title in zip(names, titles, strict=False):
        files[name] = f"# {title}\n\n{files[name].removeprefix(f'{title}. ')}"
    queries = [
        Query(question, names[place]) for question, place in zip(retrieval.questions, retrieval.answers, strict=True)
    ]
    source = (
        f"`{PASSAGES.name}` and `{QUESTIONS.name}` of this repository (Apache-2.0), among Lee's news texts (gensim)"
    )
    return Collection("questions", source, files, queries)


def docstrings(count: int, documents: int | None = None) -> Collection:
    """Docstrings of Python's standard library: the first line finds the rest."""
    source = f"docstrings of the standard library of Python {platform.python_version()} (PSF-2.0)"
    return collection("docstrings", source, documented(), count, documents)


def descriptions(count: int, documents: int | None, lists: Path | None) -> Collection:
    """Descriptions of Debian's packages: the synopsis finds the long description, which begins the file's name."""
    files = apt_files(lists)
    if not files:
        raise SystemExit(APT_HINT)
    items = [item for path in files for item in described(apt_text(path))]
    # Of packages that share a description, the one with the shortest name.
    items.sort(key=lambda item: (len(item.name), item.name))
    source = f"descriptions of the packages of {debian_release(files)} (each under its package's license)"
    return collection("descriptions", source, items, count, documents)


def collection(name: str, source: str, items: Iterable[Item], count: int, documents: int | None) -> Collection:
    """A collection of the items that can be told apart, or some of them, with the queries of `count` of these.

    Both are chosen with a seed; the queries are the same for any number of documents.
    """
    distinct = list(distinct_items(items))
    Random(SEED).shuffle(distinct)
    distinct = distinct[:documents]
    chosen = distinct[:count]
    files = {item.name: item.text for item in distinct}
    return Collection(name, source, files, [Query(item.summary, item.name) for item in chosen])


def distinct_items(items: Iterable[Item]) -> Iterator[Item]:
    """Items of which no two share their first paragraph, summary or name, and that do not repeat their summary."""
    seen: set[str] = set()
    for item in items:
        query, beginning = words(item.summary), words(item.text.partition("\n\n")[0])
        keys = {f"text {beginning}", f"query {query}", f"name {item.name}"}
        long_enough = len(item.text.split()) >= FEWEST_DOCUMENT_WORDS
        if not long_enough or not FEWEST_QUERY_WORDS <= len(query.split()) <= MOST_QUERY_WORDS:
            continue
        if seen & keys or query in words(item.text):
            continue
        seen |= keys
        yield item


def words(text: str) -> str:
    """A text's words in lower case, single spaces between them, without punctuation."""
    return " ".join(re.findall(r"\w+", text.lower()))


def documented() -> Iterator[Item]:
    """The docstrings of Python's standard library that have more than a summary."""
    for module in library_modules():
        for name, docstring in docstrings_of(module.text):
            summary, _, rest = docstring.partition("\n\n")
            yield Item(f"{module.name.removesuffix('.py')}{name}.txt", " ".join(summary.split()), rest.strip())


def library_modules() -> Iterator[Item]:
    """The sources of Python's standard library, under names such as `json.decoder.py`."""
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        relative = path.relative_to(library)
        if NOT_DOCUMENTED.isdisjoint(relative.parts):
            with tokenize.open(path) as source:  # in the encoding that it declares
                yield Item(".".join(relative.parts), "", source.read())


def docstrings_of(source: str) -> Iterator[tuple[str, str]]:
    """The names of what has a docstring, after a dot, with the docstring."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's escapes in strings
        tree = ast.parse(source)
    parts: list[tuple[str, ast.AST]] = [("", tree)]
    while parts:
        prefix, node = parts.pop()
        if docstring := docstring_of(node):
            yield prefix, docstring
        for child in ast.iter_child_nodes(node):
            own = f".{child.name}" if isinstance(child, DEFINITIONS) else ""
            parts.append((f"{prefix}{own}", child))


def described(text: str) -> Iterator[Item]:
    """The packages of a Translation file of APT (Debian policy 5.6.13)."""
    for paragraph in text.split("\n\n"):
        found = re.match(r"Package: (\S+)\n(?:.*\n)*?Description-en: (.*)\n((?: .*\n?)+)", paragraph)
        if found:
            lines = ["" if line == " ." else line[1:] for line in found[3].splitlines()]
            yield Item(f"{found[1]}.txt", found[2], "\n".join(lines))


def apt_files(lists: Path | None) -> list[Path]:
    """The Translation files of APT's lists, largest first."""
    folder = lists or Path("/var/lib/apt/lists")
    return sorted(folder.glob("*_i18n_Translation-en*"), key=lambda path: -path.stat().st_size)


def apt_text(path: Path) -> str:
    """A list's text; APT keeps its lists compressed."""
    return subprocess.run([APT_HELPER, "cat-file", path], capture_output=True, check=True).stdout.decode()


def debian_release(files: Iterable[Path]) -> str:
    """The release that the largest list belongs to, with its version and date."""
    largest = next(iter(files))
    release = largest.with_name(re.sub(r"_main_i18n_.*", "_InRelease", largest.name)).read_text(encoding="utf-8")
    facts = dict(re.findall(r"^(Version|Codename|Date): (.*)$", release, re.MULTILINE))
    return f"Debian {facts.get('Version', '')} ({facts['Codename']}, {facts['Date']})"
