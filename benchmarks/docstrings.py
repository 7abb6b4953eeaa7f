"""Known-item searches from the docstrings of pinned packages: a query, and the one passage that answers it.

A docstring's summary line asks for its description, or a sentence of a description for the rest of it. The text is that
of the versions in `constraints.txt`, read without importing the packages.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from random import Random

PACKAGES = ("numpy", "scipy", "sklearn")
HELD_OUT = ("networkx",)
"""Of another field than the rest: what is asked about it says whether the training carries over."""
PROJECTS = {"sklearn": "scikit-learn"}
"""Packages whose distribution has another name."""
DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
SUMMARY_WORDS = range(4, 26)
PASSAGE_WORDS = 40
FEWEST_WORDS = 15
SENTENCE_WORDS = range(6, 21)
SHARE_OF_SENTENCES = 0.3
"""Of the queries: a sentence of the passage, which the passage then lacks, in place of the summary line."""
_SECTION = re.compile(
    r"^(?:[-=~]{3,}$|\.\. |>>> |(?:Args|Arguments|Parameters|Returns|Example|Examples|Shape):)", re.MULTILINE
)
_ROLE = re.compile(r":[\w:]+:`~?\.?([^`<]+?)\s*(?:<[^`]*>)?`")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


@dataclass(frozen=True)
class KnownItem:
    """A query and the passage that it is about."""

    query: str
    passage: str


def known_items(packages: Sequence[str], *, seed: int) -> list[KnownItem]:
    """All of these packages, no query and no passage twice, in mixed order, the same for the same seed and versions."""
    choose = Random(seed)
    queries: dict[str, str] = {}
    passages: set[str] = set()
    for package in packages:
        for docstring in docstrings_of(package):
            item = item_of(docstring, choose)
            if item is not None and item.query not in queries and item.passage not in passages:
                queries[item.query] = item.passage
                passages.add(item.passage)
    items = [KnownItem(*pair) for pair in queries.items()]
    choose.shuffle(items)
    return items


def versions_of(packages: Sequence[str]) -> list[str]:
    """Name and version of each package."""
    return [f"{package} {version(PROJECTS.get(package, package)).partition('+')[0]}" for package in packages]


def docstrings_of(package: str) -> Iterator[str]:
    """The docstrings of a package's modules, classes and functions, without those of its tests."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"`{package}` is not installed\n\nhint: `make benchmark` sets up the environment")
    root = Path(spec.submodule_search_locations[0])
    for path in sorted(root.rglob("*.py")):
        if any(part.startswith("test") for part in path.relative_to(root).parts):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if docstring := docstring_of(node):
                yield docstring


def docstring_of(node: ast.AST) -> str | None:
    """The docstring of a module, class or function; None for one without, and for other nodes."""
    return ast.get_docstring(node) if isinstance(node, (ast.Module, *DEFINITIONS)) else None


def item_of(docstring: str, choose: Random) -> KnownItem | None:
    """The search that a docstring makes; None where it has no summary line or too short a description."""
    summary, _, rest = inspect.cleandoc(docstring).partition("\n\n")
    query, passage = prose(summary), description(rest)
    sentences = _SENTENCE_END.split(passage)
    if choose.random() < SHARE_OF_SENTENCES and len(sentences) > 2:
        query = sentences.pop(choose.randrange(len(sentences)))
        passage = " ".join(sentences)
        allowed = SENTENCE_WORDS
    else:
        allowed = SUMMARY_WORDS
    if len(query.split()) not in allowed or len(passage.split()) < FEWEST_WORDS:
        return None
    return KnownItem(query.rstrip("."), passage)


def description(text: str) -> str:
    """The paragraphs before the first section, as one passage of at most `PASSAGE_WORDS` words."""
    found: list[str] = []
    for paragraph in text.split("\n\n"):
        if _SECTION.search(inspect.cleandoc(paragraph)):
            break
        found += prose(paragraph).split()
    return " ".join(found[:PASSAGE_WORDS])


def prose(text: str) -> str:
    """reStructuredText without roles and marks, on one line."""
    return " ".join(re.sub(r"[`*]+", "", _ROLE.sub(r"\1", text)).split())
