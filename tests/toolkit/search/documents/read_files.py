"""Write a file and read it, as a build of an index does."""

from __future__ import annotations

from pathlib import Path

import pytest

from ortkit.toolkit.search.documents.document import Document, Passage, UnreadableFileError
from ortkit.toolkit.search.documents.reading import read_document
from ortkit.toolkit.search.folder import FolderRules, FoundFile, walk


def found_in(folder: Path, name: str) -> FoundFile:
    (found,) = [file for file in walk(folder, FolderRules(hidden=True)) if file.name == name]
    assert isinstance(found, FoundFile)
    return found


def written(folder: Path, name: str, content: bytes | str) -> FoundFile:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return found_in(folder, name)


def read(folder: Path, name: str, content: bytes | str) -> tuple[Document, list[Passage]]:
    document = read_document(written(folder, name, content))
    return document, list(document.passages)


def texts(folder: Path, name: str, content: bytes | str) -> list[str]:
    return [passage.text for passage in read(folder, name, content)[1]]


def refusal(folder: Path, name: str, content: bytes | str) -> UnreadableFileError:
    with pytest.raises(UnreadableFileError) as caught:
        read(folder, name, content)
    assert caught.value.exit_code == 2
    return caught.value


def placed(passages: list[Passage]) -> list[tuple[str, tuple[int, int] | None, tuple[str, ...]]]:
    return [(passage.text, passage.place.lines, passage.place.headings) for passage in passages]
