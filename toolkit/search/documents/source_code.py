"""Source code: blocks between blank lines, under the class and function that enclose them by indentation."""

from __future__ import annotations

import re

from .document import Passage
from .plain_text import paragraphs, passage_of

_MODIFIERS = (
    "abstract|async|const|data|default|export|extern|final|fileprivate|inline|internal|open|override|partial|private|"
    r"protected|pub(?:\([^()]*\))?|public|sealed|static|unsafe|virtual"
)
_DEFINITION = re.compile(
    rf"([ \t]*)(?:(?:{_MODIFIERS})[ \t]+)*"
    r"((?:class|def|enum|fn|func|fun|function\*?|impl|interface|module|namespace|object|protocol|record|struct|sub|trait)"
    r"[ \t]+(?:\([^()]*\)[ \t]*)?[\w$.:]+)"
)
"""A definition by keyword, with the receiver of a Go method. C's functions have no keyword, and so no heading."""
_ABOVE = ("@", "#[", "//", "/*", "*", "# ", "--")
"""Beginnings of the lines above a definition that belong to it: decorators, attributes and comments."""
_CLOSING = re.compile(r"\s*[)\]}>;,]*\s*(?:end)?[;,]?\s*$")
_INDENTED = frozenset(
    [
        *(".c", ".cc", ".cpp", ".cs", ".cxx", ".dart", ".go", ".h", ".hpp", ".java", ".jl"),
        *(".js", ".jsx", ".kt", ".lua", ".m", ".mjs", ".php", ".pl", ".pm", ".py", ".pyi"),
        *(".pyx", ".rb", ".rs", ".scala", ".swift", ".ts", ".tsx", ".vb", ".zig"),
    ]
)
"""Suffixes of languages whose definitions begin with a keyword."""
SUFFIXES = _INDENTED | frozenset(
    [
        *(".asm", ".bash", ".bat", ".cfg", ".clj", ".cmake", ".conf", ".css", ".dockerfile", ".el", ".elm"),
        *(".erl", ".ex", ".exs", ".f90", ".gradle", ".graphql", ".hs", ".ini", ".less", ".lisp", ".mk"),
        *(".ml", ".nix", ".proto", ".ps1", ".r", ".s", ".sass", ".scss", ".service", ".sh", ".sql"),
        *(".svg", ".tcl", ".tf", ".toml", ".v", ".vhd", ".vim", ".xml", ".xsd", ".xsl", ".yaml"),
        *(".yml", ".zsh"),
    ]
)


def read_code(text: str, suffix: str) -> list[Passage]:
    if suffix not in _INDENTED:
        return paragraphs(text)
    return _Reader(text.split("\n")).read()


class _Reader:
    def __init__(self, lines: list[str]) -> None:
        self.lines = lines
        self.passages: list[Passage] = []
        self.above: list[tuple[int, str]] = []
        """Indentation and name of the definitions around the current line."""
        self.begun: int | None = None
        self.headings: tuple[str, ...] = ()
        """Of the block that has begun."""

    def read(self) -> list[Passage]:
        for number, line in enumerate(self.lines):
            if not line.strip():
                self.finish(number)
                continue
            if self.begun is not None and _CLOSING.match(line):
                continue
            self.line(number, line)
        self.finish(len(self.lines))
        return self.passages

    def line(self, number: int, line: str) -> None:
        indentation = _indentation(line)
        definition = _DEFINITION.match(line)
        if definition is None:
            if not _CLOSING.match(line):
                self.leave(number, indentation)
            if self.begun is None:
                self.begun, self.headings = number, self.names
            return
        begin = number
        while self.begun is not None and begin > self.begun and self.lines[begin - 1].lstrip().startswith(_ABOVE):
            begin -= 1
        self.finish(begin)
        while self.above and self.above[-1][0] >= indentation:
            self.above.pop()
        self.above.append((indentation, " ".join(definition[2].split())))
        self.begun, self.headings = begin, self.names

    def leave(self, number: int, indentation: int) -> None:
        """Leave the definitions that are not around a line of this indentation."""
        while self.above and self.above[-1][0] >= indentation:
            self.above.pop()
        if self.begun is not None and self.headings != self.names and len(self.headings) > len(self.above):
            self.finish(number)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for _, name in self.above)

    def finish(self, number: int) -> None:
        if self.begun is not None and number > self.begun:
            self.passages.append(passage_of(self.lines, self.begun, number - 1, self.headings))
        self.begun = None


def _indentation(line: str) -> int:
    expanded = line.expandtabs(4)
    return len(expanded) - len(expanded.lstrip())
