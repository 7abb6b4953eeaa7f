from __future__ import annotations

import dataclasses
import gzip
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ortkit import Bundle, FolderRules, Index, IndexProgress, SkippedFile
from ortkit.toolkit.commands.index import _print_files, _Shown
from tests.commands import Finished, lines_on_terminal, on_terminal
from tests.tiny_bundles import write_embedder, write_reranker

Ortkit = Callable[..., Finished]


@pytest.fixture
def built(ortkit: Ortkit, embedder_bundle: Bundle, manuals: Path, tmp_path: Path) -> Path:
    """The index of the manuals, made by the command."""
    finished = ortkit("index", manuals, "--bundle", embedder_bundle.path, "-o", tmp_path / "m.index")
    assert (finished.code, finished.err) == (0, "")
    assert re.fullmatch(
        rf"{tmp_path}/m\.index: 3 files, 4 chunks, 0\.1 MB\n  files: 3 added\n  chunks: 4 embedded, \S+/s; \d+\.\d s\n",
        finished.out.decode(),
    )
    return tmp_path / "m.index"


def report(finished: Finished) -> dict:
    assert finished.code == 0, finished.err
    return json.loads(finished.out)


def test_an_update_reads_what_changed(ortkit: Ortkit, built: Path, manuals: Path) -> None:
    """The index names its bundle and its chunk settings."""
    (manuals / "notes.txt").unlink()
    (manuals / "lamps.csv").write_text("lamp,meaning\nblue,wait\n", encoding="utf-8")
    (manuals / "new.md").write_text("The dog sleeps.", encoding="utf-8")

    finished = ortkit("index", manuals, "-o", built)
    again = ortkit("index", manuals, "-o", built)

    assert finished.out.decode().splitlines()[1] == "  files: 1 added, 1 changed, 1 removed, 1 unchanged"
    assert again.out.decode().splitlines()[1] == "  files: 3 unchanged"
    assert re.fullmatch(r"  chunks: 0 embedded; \d+\.\d s", again.out.decode().splitlines()[2])


def test_an_update_keeps_the_settings_of_its_chunks(
    ortkit: Ortkit, embedder_bundle: Bundle, manuals: Path, tmp_path: Path
) -> None:
    index = tmp_path / "m.index"
    command = ("index", manuals, "-o", index)
    assert ortkit(*command, "--bundle", embedder_bundle.path, "--chunk-tokens", 40, "--overlap", 5).code == 0
    (manuals / "new.md").write_text("The dog sleeps.", encoding="utf-8")

    assert report(ortkit(*command, "--json"))["added"] == 1
    finished = ortkit(*command, "--chunk-tokens", 30)

    assert finished.code == 2
    assert finished.err.startswith(
        f"error: the index `{index}` has chunks of 40 tokens with an overlap of 5 (version 2), and these are 30 and 5"
    )
    assert report(ortkit(*command, "--restart", "--chunk-tokens", 30, "--json"))["embedded"] > 4
    with Index.open(index) as opened:
        assert (opened.facts.chunking.max_tokens, opened.facts.chunking.overlap) == (30, 5)


def test_a_restart_keeps_what_is_not_given(
    ortkit: Ortkit, embedder_bundle: Bundle, manuals: Path, tmp_path: Path
) -> None:
    command = ("index", manuals, "-o", tmp_path / "m.index")
    settings = ("--chunk-tokens", 40, "--overlap", 5, "--include", "*.md", "--max-file-size", "2M")
    assert ortkit(*command, "--bundle", embedder_bundle.path, *settings).code == 0
    kept = ("bundle", "chunk_tokens", "overlap", "rules")

    def inspected() -> dict:
        fields = json.loads(ortkit("inspect", tmp_path / "m.index", "--json").out)
        return {name: fields[name] for name in kept}

    before = inspected()
    assert (before["chunk_tokens"], before["overlap"], before["rules"]["include"]) == (40, 5, ["*.md"])
    assert report(ortkit(*command, "--restart", "--json"))["wrote"]
    assert inspected() == before
    assert report(ortkit(*command, "--restart", "--overlap", 0, "--json"))["wrote"]
    assert inspected() == before | {"overlap": 0}


def test_the_report_as_json(ortkit: Ortkit, embedder_bundle: Bundle, manuals: Path, tmp_path: Path) -> None:
    (manuals / "x.bin").write_bytes(b"\0\1")
    fields = report(ortkit("index", manuals, "--bundle", embedder_bundle.path, "-o", tmp_path / "m.index", "--json"))

    assert fields.pop("seconds") > 0
    assert fields.pop("size") == sum(
        path.stat().st_size for path in (tmp_path / "m.index").iterdir() if path.suffix in (".npy", ".sqlite")
    )
    assert fields == {
        "index": str(tmp_path / "m.index"), "files": 3, "chunks": 4, "added": 3, "changed": 0, "removed": 0,
        "unchanged": 0, "embedded": 4, "reused": 0, "partly_read": [], "resumed": False, "wrote": True,
        "rules_changed": False, "rules": json.loads(json.dumps(dataclasses.asdict(FolderRules()))),
        "skipped": [{"name": "x.bin", "reason": "is not text: it has NUL bytes"}],
    }  # fmt: skip


def test_skipped_files_are_listed_and_do_not_fail_the_run(ortkit: Ortkit, built: Path, manuals: Path) -> None:
    for number in range(5):
        (manuals / f"{number}.bin").write_bytes(b"\0\1")
    (manuals / "bad.jsonl").write_text('{"text": "fox"}\nnot JSON\n', encoding="utf-8")

    finished = ortkit("index", manuals, "-o", built)
    whole = ortkit("index", manuals, "-o", built, "--verbose")

    assert finished.code == whole.code == 0
    assert finished.err.startswith(
        "warning: 5 files were skipped:\n"
        "  is not text: it has NUL bytes (5 files: 0.bin, 1.bin, 2.bin, ...)\n"
        "  `--verbose` lists all\n"
        "warning: records were left out of 1 file:\n"
    )
    assert [line for line in whole.err.splitlines() if "NUL" in line] == [
        f"  {number}.bin: is not text: it has NUL bytes" for number in range(5)
    ]


def test_files_of_one_reason_are_one_group(ortkit: Ortkit, built: Path, manuals: Path) -> None:
    for number in range(2):
        (manuals / f"{number}.txt.gz").write_bytes(gzip.compress(b"fox"))
        (manuals / f"{number}.large.txt").write_text("fox " * (1000 + number), encoding="utf-8")

    finished = ortkit("index", manuals, "-o", built, "--max-file-size", "1K")

    assert finished.err == (
        "warning: 4 files were skipped:\n"
        "  is larger than the limit of 1K (2 files: 0.large.txt, 1.large.txt)\n"
        "  is compressed with gzip; unpack it: `gzip -dc FILE > ...` (2 files: 0.txt.gz, 1.txt.gz)\n"
    )


def test_the_first_reasons_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    files = [SkippedFile(f"{number}.txt", f"reason {number}") for number in range(7)]
    _print_files([*files, SkippedFile("x\x1b[2J.txt", "reason 6")], verbose=False)

    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "  reason 6 (2 files: 6.txt, x\\x1b[2J.txt)"
    assert lines[5:] == ["  and for 2 other reasons", "  `--verbose` lists all"]


def test_options_choose_files(ortkit: Ortkit, embedder_bundle: Bundle, manuals: Path, tmp_path: Path) -> None:
    (manuals / ".hidden.txt").write_text("The dog sleeps.", encoding="utf-8")
    (manuals / "long.txt").write_text("fox " * 500, encoding="utf-8")
    options = ("--hidden", "--max-file-size", 1000, "--include", "*.txt", "--include", "*.md", "--exclude", "pumps/")

    ortkit("index", manuals, "--bundle", embedder_bundle.path, "-o", tmp_path / "m.index", *options)

    with Index.open(tmp_path / "m.index") as index:
        assert {hit.file for hit in index.search("dog", top_n=50)} == {".hidden.txt", "notes.txt"}


def test_an_update_keeps_the_options_that_choose_files(
    ortkit: Ortkit, embedder_bundle: Bundle, manuals: Path, tmp_path: Path
) -> None:
    command = ("index", manuals, "-o", tmp_path / "m.index")
    options = ("--include", "*.md", "--exclude", "drafts/", "--hidden", "--max-file-size", "2M")
    ortkit(*command, "--bundle", embedder_bundle.path, *options)
    (manuals / "new.txt").write_text("The dog sleeps.", encoding="utf-8")
    rules = "rules     *.md, without drafts/, hidden ones too, up to 2M"

    again = ortkit(*command)
    assert (again.code, again.out.decode().splitlines()[1]) == (0, "  files: 1 unchanged")
    assert rules in ortkit("inspect", tmp_path / "m.index").out.decode().splitlines()
    assert json.loads(ortkit("inspect", tmp_path / "m.index", "--json").out)["rules"] == {
        "include": ["*.md"],
        "exclude": ["drafts/"],
        "max_file_bytes": 2 << 20,
        "hidden": True,
        "ignore_file": ".ortkitignore",
        "follow_links": False,
    }

    changed = ortkit(*command, "--exclude", "new.txt")
    assert changed.out.decode().splitlines()[1:3] == [
        "  files: 2 added, 1 unchanged",
        "  rules changed, for later runs too: all files, without new.txt, up to 64M",
    ]
    fields = report(ortkit(*command, "--json"))
    assert (fields["unchanged"], fields["rules_changed"], fields["rules"]["exclude"]) == (3, False, ["new.txt"])


def test_a_new_index_needs_a_bundle(ortkit: Ortkit, manuals: Path, tmp_path: Path) -> None:
    finished = ortkit("index", manuals, "-o", tmp_path / "m.index")

    assert finished.code == 2
    assert finished.err == (
        f"error: there is no index `{tmp_path}/m.index` yet, and a new one needs an embedder\n\n"
        "hint: add `--bundle BUNDLE`; `ortkit list` shows the bundles\n"
    )


def test_folders_without_files(ortkit: Ortkit, embedder_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    command = ("index", "--bundle", embedder_bundle.path, "-o", tmp_path / "m.index")
    empty, missing = (ortkit(*command, tmp_path / name) for name in ("empty", "missing"))

    assert (empty.code, missing.code) == (2, 5)
    assert empty.err == (
        f"error: there is nothing to index in `{tmp_path}/empty`: no file of it matches the rules\n\n"
        "hint: name another folder, or look at the patterns and the ignore files\n"
    )
    assert missing.err.startswith(f"error: there is no folder `{tmp_path}/missing`\n")


def test_bundles_that_cannot_be_used(ortkit: Ortkit, built: Path, manuals: Path, tmp_path: Path) -> None:
    write_reranker(tmp_path / "reranker")
    write_embedder(tmp_path / "other", dense=True)
    reranker, other, missing = (
        ortkit("index", manuals, "-o", built, "--bundle", tmp_path / name) for name in ("reranker", "other", "missing")
    )

    assert (reranker.code, other.code, missing.code) == (7, 2, 5)
    assert reranker.err.startswith(f"error: `{tmp_path}/reranker` is a reranker, not an embedder\n")
    assert other.err.startswith(f"error: the index `{built}` was built with the bundle `tiny-embedder` (")
    assert missing.err.startswith(f"error: there is no bundle at `{tmp_path}/missing`")


def test_an_index_that_cannot_be_read(ortkit: Ortkit, embedder_bundle: Bundle, built: Path, manuals: Path) -> None:
    """It names no bundle any more; with one, it can be built again."""
    (built / "index.json").write_text("{}", encoding="utf-8")
    damaged = ortkit("index", manuals, "-o", built)
    again = ortkit("index", manuals, "-o", built, "--bundle", embedder_bundle.path, "--restart")

    assert damaged.code == 7
    assert "--restart" in damaged.err
    assert again.code == 0
    assert again.err == (
        f"note: `{built}/index.json` is not valid: `format` must be an integer; settings that were not given are the "
        "default ones\n"
    )


def test_the_progress_line() -> None:
    shown = _Shown()
    shown.began, shown.before = 10.0, 100

    assert shown.line(IndexProgress(30, 120, 900, 500), 14.0) == (
        "indexing [#####---------------]  25%, 30 of 120 files, 500 of 900 chunks embedded, 100/s"
    )
    assert _Shown().line(IndexProgress(0, 0, 0, 0), 1.0) == (
        "indexing [--------------------]   0%, 0 of 0 files, 0 of 0 chunks embedded"
    )


def test_ctrl_c_and_the_run_after_it(embedder_bundle: Bundle, manuals: Path, tmp_path: Path) -> None:
    """The line is shown at once, and ends before the next one; the run resumes."""
    (manuals / "long.txt").write_text("The dog sleeps.\n\n" * 100_000, encoding="utf-8")
    command = [
        *(sys.executable, "-m", "ortkit", "index", str(manuals), "-o", str(tmp_path / "m.index")),
        *("--bundle", str(embedder_bundle.path)),
    ]
    shown = lines_on_terminal(on_terminal(command, code=130, interrupt_at="indexing ..."))
    (manuals / "long.txt").unlink()
    again = lines_on_terminal(on_terminal(command))

    assert "interrupted" in shown[-2]
    assert re.fullmatch(r"indexing .*", again[0])
    with Index.open(tmp_path / "m.index") as index:
        assert index.facts.files == 3


def test_what_an_index_is_of(ortkit: Ortkit, embedder_bundle: Bundle, built: Path, manuals: Path) -> None:
    shown, fields = ortkit("inspect", built), json.loads(ortkit("inspect", built, "--json").out)
    digest = embedder_bundle.digest

    assert (shown.code, shown.err) == (0, "")
    assert re.fullmatch(
        rf"index     {built}\n"
        rf"of        {manuals}: 3 files, 4 chunks\n"
        rf"embedder  tiny-embedder, digest {digest[:16]}, 8 dimensions\n"
        r"chunks    up to 64 tokens, overlap 9\n"
        r"rules     all files, up to 64M\n"
        r"size      0\.1 MB\n"
        r"built     \S+, generation 1, format 1\n",
        shown.out.decode(),
    )
    assert (fields["digest"], fields["files"], fields["chunks"]) == (digest, 3, 4)
    assert ortkit("inspect", built, "--sbom").code == 2
    (built / "index.json").write_text("{", encoding="utf-8")
    assert ortkit("inspect", built).code == 7
