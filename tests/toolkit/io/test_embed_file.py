"""`ortkit embed --output`: failed records, and resuming after a kill."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from ortkit import Bundle, Embedder, Embeddings
from ortkit.toolkit.io.resumable import OutputFiles, locked
from tests.commands import Finished, lines_on_terminal, on_terminal
from tests.tampered import changed_bundle, without_special_tokens
from tests.toolkit.embed_runs import Killed, break_after, names

Ortkit = Callable[..., Finished]

LINES = [
    b'{"text": "fine", "id": 1}\n',
    b"broken\n",
    b'{"id": 3}\n',
    b"\xff\xfe\n",
    b'{"text": "nul\0"}\n',
    b'{"text": "\\ud800"}\n',
    b"\n",
    b'{"text": "' + b"word " * 300 + b'"}\n',
    b'{"text": "fine too", "half": "\\ud800"}\n',
    b"[" * 100_000 + b"\n",
    b'{"text": "too large", "x": 1e999}\n',
]
ERRORS = [
    (2, "line 2 is not valid JSON: Expecting value: line 1 column 1 (char 0)"),
    (3, "line 3 has no text in a field `text`; its fields are `id`"),
    (4, "line 4 is not valid UTF-8 at byte 1"),
    (5, "line 5 has a NUL byte and is not text"),
    (6, "the text in line 6 is not valid Unicode: surrogates not allowed"),
    (10, "the JSON in line 10 is nested too deeply"),
    (11, "line 11 has `1e999`, which cannot be written as a JSON number"),
]


def write_corpus(path: Path, count: int) -> Path:
    """JSONL with every 50th line invalid."""
    texts = [{"id": number, "text": f"pump {'word ' * (number % 9)}{number}"} for number in range(count)]
    lines = ["broken" if text["id"] % 50 == 7 else json.dumps(text) for text in texts]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("source", ["file", "pipe"])
@pytest.mark.parametrize("output_format", ["jsonl", "json", "npy"])
def test_failed_records_are_listed_and_do_not_stop_the_run(
    ortkit: Ortkit, tiny_bundle: Bundle, tmp_path: Path, source: str, output_format: str
) -> None:
    (tmp_path / "in").write_bytes(b"".join(LINES))
    output = tmp_path / "out"
    arguments = ["--output", output, "--format", output_format, "--long", "error"]
    arguments += ["--input", tmp_path / "in"] if source == "file" else []
    fine = Embedder(tiny_bundle).embed(["fine", "fine too"])

    stdin = b"" if source == "file" else b"".join(LINES)
    finished = ortkit("embed", tiny_bundle.path, *arguments, stdin=stdin)

    assert finished.code == 1
    assert finished.err == (
        "error: 8 of 10 records failed and have no embedding\n\n"
        f"hint: `{output}.failed.jsonl` has the reason for each\n"
    )
    failed = [json.loads(line) for line in Path(f"{output}.failed.jsonl").read_text().splitlines()]
    too_long = (8, "line 8 is longer than the model's limit of 48 tokens")
    assert [(row["line"], row["error"]) for row in failed] == [*ERRORS[:5], too_long, *ERRORS[5:]]
    if output_format == "npy":
        vectors = np.load(output)
        assert np.isnan(vectors).all(axis=1).tolist() == [False, *[True] * 6, False, True, True]
        assert np.array_equal(vectors[[0, 7]], fine)
    else:
        content = output.read_text()
        rows = json.loads(content) if output_format == "json" else [json.loads(line) for line in content.splitlines()]
        assert [row.get("line") for row in rows] == [None, 2, 3, 4, 5, 6, None, None, 10, 11]
        assert [row["embedding"] is None for row in rows] == [False, *[True] * 6, False, True, True]
        assert rows[6]["text"] == "word " * 300
        assert rows[7]["half"] == "\ud800"
        assert np.array_equal(np.array([rows[0]["embedding"], rows[7]["embedding"]], np.float32), fine)
    assert names(tmp_path) == ["in", "out", "out.failed.jsonl"]


@pytest.mark.parametrize("dtype", ["int8", "binary", "ubinary"])
def test_failed_records_are_zeros_for_integer_types(
    ortkit: Ortkit, tiny_bundle: Bundle, tmp_path: Path, dtype: str
) -> None:
    output = tmp_path / "out.npy"

    finished = ortkit("embed", tiny_bundle.path, "--output", output, "--dtype", dtype, stdin=b"fine\n\xff\n")

    vectors = np.load(output)
    assert finished.code == 1
    assert vectors[0].any()
    assert not vectors[1].any()


def test_an_output_without_failures_leaves_no_list_of_an_earlier_run(
    ortkit: Ortkit, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    output = tmp_path / "out.npy"
    assert ortkit("embed", tiny_bundle.path, "--output", output, stdin=b"fine\n\xff\n").code == 1

    assert ortkit("embed", tiny_bundle.path, "--output", output, stdin=b"fine\n").code == 0

    assert names(tmp_path) == ["out.npy"]


def test_no_records_give_an_empty_output(ortkit: Ortkit, tiny_bundle: Bundle, tmp_path: Path) -> None:
    for output_format, content in [("jsonl", b""), ("json", b"[]\n")]:
        ortkit("embed", tiny_bundle.path, "--output", tmp_path / "out", "--format", output_format)
        assert (tmp_path / "out").read_bytes() == content
    ortkit("embed", tiny_bundle.path, "--output", tmp_path / "out", "--format", "npy")
    assert np.load(tmp_path / "out").shape == (0, 48)


def test_a_link_is_followed_to_the_output(ortkit: Ortkit, tiny_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old.npy").write_bytes(b"old")
    (tmp_path / "out.npy").symlink_to("folder/old.npy")

    assert ortkit("embed", tiny_bundle.path, "--output", tmp_path / "out.npy", stdin=b"fine\n").code == 0

    assert (tmp_path / "out.npy").is_symlink()
    assert len(np.load(tmp_path / "folder" / "old.npy")) == 1
    assert names(tmp_path) == ["folder", "out.npy"]


def test_only_a_file_can_be_gone_on_with(ortkit: Ortkit, tiny_bundle: Bundle, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    finished = ortkit("embed", tiny_bundle.path, "--output", pipe, stdin=b"fine\n")

    assert (finished.code, finished.out) == (1, b"")
    assert finished.err == (
        f"error: `{pipe}` cannot be written: it is not a regular file\n\n"
        f"hint: leave out `--output` and send stdout there: `> {pipe}`\n"
    )
    assert names(tmp_path) == ["pipe"]
    null = tmp_path / "null"
    null.symlink_to(os.devnull)
    assert ortkit("embed", tiny_bundle.path, "--output", null, "--dtype", "int8", "fine").code == 0
    assert names(tmp_path) == ["null", "pipe"], "no ranges beside what keeps no vectors"


def test_the_input_is_not_replaced(ortkit: Ortkit, tiny_bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "io.jsonl"
    path.write_bytes(b'{"text": "fine"}\n')

    finished = ortkit("embed", tiny_bundle.path, "--input", path, "--output", path, "--restart")

    assert finished.code == 2
    assert finished.err == (
        f"error: `{path}` is also the input, and would be replaced\n\nhint: choose another file with `--output`\n"
    )
    assert path.read_bytes() == b'{"text": "fine"}\n'
    assert names(tmp_path) == ["io.jsonl"]


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="a file that opens and cannot be read is Linux's")
def test_an_unreadable_input_is_reported(ortkit: Ortkit, tiny_bundle: Bundle, tmp_path: Path) -> None:
    finished = ortkit("embed", tiny_bundle.path, "--input", "/proc/self/mem", "--output", tmp_path / "out.npy")

    assert finished == Finished(2, b"", "error: `/proc/self/mem` cannot be read: Input/output error\n")
    assert names(tmp_path) == []


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("output_format", ["jsonl", "json", "npy"])
def test_completed_records_are_not_computed_again(
    ortkit: Ortkit, tiny_bundle: Bundle, tmp_path: Path, output_format: str
) -> None:
    source, output = write_corpus(tmp_path / "in", 60), tmp_path / "out"
    arguments = ["embed", tiny_bundle.path, "--input", source, "--format", output_format, "--output"]
    ortkit(*arguments, tmp_path / "whole")

    with pytest.MonkeyPatch.context() as patch:
        first = break_after(patch, 3)
        with pytest.raises(Killed):
            ortkit(*arguments, output)
    assert not output.exists()
    with pytest.MonkeyPatch.context() as patch:
        second = break_after(patch, 100)
        finished = ortkit(*arguments, output)

    assert first == [7, 8, 8]
    assert sum(first) + sum(second) == 58, "every text but the two broken lines, once"
    assert finished.code == 1
    assert finished.err.startswith("note: resuming after 24 completed records\n")
    assert output.read_bytes() == (tmp_path / "whole").read_bytes()
    assert (tmp_path / "out.failed.jsonl").read_bytes() == (tmp_path / "whole.failed.jsonl").read_bytes()
    assert not [name for name in names(tmp_path) if name.startswith(".")]


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("form", ["array", "pretty", "csv", "tsv"])
def test_records_of_any_form_are_gone_on_with(ortkit: Ortkit, tiny_bundle: Bundle, tmp_path: Path, form: str) -> None:
    records = [{"id": str(number), "content": f"pump,\n{'word ' * (number % 9)}{number}"} for number in range(60)]
    source = tmp_path / f"in.{'json' if form in ('array', 'pretty') else form}"
    if form in ("array", "pretty"):
        source.write_text(json.dumps(records, indent=2 if form == "pretty" else None))
    else:
        with source.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["id", "content"], delimiter="," if form == "csv" else "\t")
            writer.writeheader()
            writer.writerows(records)
    arguments = ["embed", tiny_bundle.path, "--input", source, "--output"]

    refused = ortkit(*arguments, tmp_path / "out")
    assert refused.code == 2
    assert "has no text in a field `text`; its fields are `id`, `content`\n" in refused.err
    assert "`--field content`" in refused.err
    assert names(tmp_path) == [source.name], "nothing is begun of it"
    with pytest.MonkeyPatch.context() as patch:
        break_after(patch, 3)
        with pytest.raises(Killed):
            ortkit(*arguments, tmp_path / "out", "--field", "content")
    other = ortkit(*arguments, tmp_path / "out", "--field", "id")
    finished = ortkit(*arguments, tmp_path / "out", "--field", "content")

    assert other.err.startswith(f"error: `{tmp_path}/out` was started with other options, and 24 records are complete")
    assert finished == Finished(0, b"", "note: resuming after 24 completed records\n")
    found = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert [{name: row[name] for name in ("id", "content")} for row in found] == records
    expected = Embedder(tiny_bundle).embed([record["content"] for record in records])
    assert np.array_equal(np.array([row["embedding"] for row in found], np.float32), expected)


@pytest.fixture
def begun(
    ortkit: Ortkit,
    tiny_bundle: Bundle,
    tmp_path: Path,
    small_chunks: None,  # noqa: ARG001 - a fixture for its effect
) -> list[object]:
    """The command of a run that was killed after 24 records."""
    write_corpus(tmp_path / "in", 60)
    arguments = ["embed", tiny_bundle.path, "--input", tmp_path / "in", "--output", tmp_path / "out.npy"]
    with pytest.MonkeyPatch.context() as patch:
        break_after(patch, 3)
        with pytest.raises(Killed):
            ortkit(*arguments)
    return arguments


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    ("options", "command"),
    [([], "the same command"), (["--restart"], "the same command without `--restart`")],
)
def test_it_says_that_it_can_go_on(
    ortkit: Ortkit, tiny_bundle: Bundle, tmp_path: Path, options: list[str], command: str
) -> None:
    write_corpus(tmp_path / "in", 60)
    with pytest.MonkeyPatch.context() as patch:
        real = Embedder.embed_with_report
        calls: list[int] = []

        def full(self: Embedder, texts: Sequence[str], **options: object) -> Embeddings:
            calls.append(len(texts))
            if len(calls) > 3:
                raise OSError(28, "No space left on device")
            return real(self, texts, **options)

        patch.setattr(Embedder, "embed_with_report", full)
        arguments = ["--input", tmp_path / "in", "--output", tmp_path / "out.npy", *options]
        finished = ortkit("embed", tiny_bundle.path, *arguments)

    assert finished.code == 1
    assert finished.err == (
        f"note: 16 records are complete; {command} resumes after them\n"
        f"error: `{tmp_path / 'out.npy'}` cannot be written: No space left on device\n"
    )


@pytest.mark.parametrize("changed", ["a byte", "length", "options", "bundle"])
def test_a_run_with_other_options_is_not_resumed(
    ortkit: Ortkit, begun: list[object], tiny_bundle: Bundle, tmp_path: Path, changed: str
) -> None:
    source = tmp_path / "in"
    content = source.read_bytes()
    what = "another input"
    if changed == "a byte":
        source.write_bytes(content.replace(b"pump", b"Pump", 1))
    elif changed == "length":
        source.write_bytes(content + b"more\n")
    elif changed == "options":
        begun = [*begun, "--dim", 8]
        what = "other options"
    else:
        shutil.copytree(tiny_bundle.path, tmp_path / "bundle")
        manifest = tmp_path / "bundle" / "manifest.json"
        manifest.write_text(manifest.read_text().replace('"tiny-bert"', '"tiny-bird"'))
        begun = ["embed", tmp_path / "bundle", *begun[2:]]
        what = "another bundle"

    finished = ortkit(*begun)

    assert finished.code == 2
    assert finished.err == (
        f"error: `{tmp_path / 'out.npy'}` was started with {what}, and 24 records are complete\n\n"
        "hint: repeat the original command to resume, or add `--restart` to start from the beginning\n"
    )
    assert ortkit(*begun, "--restart").code == 1
    whole = ortkit(*begun[:4], "--format", "npy", "--output", tmp_path / "whole", *begun[6:])
    assert whole.code == 1
    assert (tmp_path / "out.npy").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_record_of_another_version_counts_for_nothing(ortkit: Ortkit, begun: list[object], tmp_path: Path) -> None:
    (tmp_path / ".out.npy.state").write_text('{"version": 2}')
    assert "resuming after" not in ortkit(*begun).err
    assert len(np.load(tmp_path / "out.npy")) == 60


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "Expecting value: line 1 column 1 (char 0)"),
        (b"\xff\0", ""),
        (b"[" * 100_000, "maximum recursion depth"),
        (b"[]", "must be an object"),
        (b'{"rows": -5}', "its figures are inconsistent"),
        (b'{"output_size": 1000000}', "its rows are missing"),
        (None, "Is a directory"),
    ],
)
def test_an_unusable_state_starts_from_the_beginning(
    ortkit: Ortkit, begun: list[object], tmp_path: Path, content: bytes | None, why: str
) -> None:
    state = tmp_path / ".out.npy.state"
    if content is None:
        state.unlink()
        state.mkdir()
    elif content.startswith(b"{"):
        state.write_text(json.dumps(json.loads(state.read_text()) | json.loads(content)))
    else:
        state.write_bytes(content)

    finished = ortkit(*begun)

    if content is None:
        assert finished.code == 1
        assert finished.err.endswith(f"error: `{tmp_path}/out.npy` cannot be written: Is a directory\n")
        return
    assert finished.err.startswith(
        f"note: starting from the beginning: the state of an earlier run in `{state}` cannot be used: {why}"
    )
    assert "resuming after" not in finished.err
    assert len(np.load(tmp_path / "out.npy")) == 60
    assert not np.isnan(np.load(tmp_path / "out.npy")[:7]).any()
    assert not [name for name in names(tmp_path) if name.startswith(".")]


@pytest.mark.parametrize("name", [".out.npy.partial", ".out.npy.failed.partial", ".out.npy.state.next"])
@pytest.mark.parametrize("kind", ["link", "hard link", "pipe"])
def test_the_target_of_a_link_is_not_overwritten(
    ortkit: Ortkit, tiny_bundle: Bundle, tmp_path: Path, name: str, kind: str
) -> None:
    (tmp_path / "other").write_bytes(b"another's")
    path = tmp_path / name
    if kind == "pipe":
        os.mkfifo(path)
    else:
        (path.symlink_to if kind == "link" else path.hardlink_to)(tmp_path / "other")
    (tmp_path / "in").write_text("fine\n" * 3)
    arguments = ["embed", tiny_bundle.path, "--input", tmp_path / "in", "--output", tmp_path / "out.npy"]

    finished = ortkit(*arguments)

    assert (tmp_path / "other").read_bytes() == b"another's"
    if name == ".out.npy.partial":
        # The others are replaced; this one may belong to another process.
        assert finished.code == 1
        assert finished.err.endswith(
            f"error: `{path}` is a link or not a regular file, and would be overwritten\n\n"
            f"hint: remove it: `rm {path}`\n"
        )
        path.unlink()
        finished = ortkit(*arguments)
    assert finished.code == 0
    assert len(np.load(tmp_path / "out.npy")) == 3


def test_without_the_rows_the_record_counts_for_nothing(ortkit: Ortkit, begun: list[object], tmp_path: Path) -> None:
    (tmp_path / ".out.npy.partial").unlink()

    assert "resuming after" not in ortkit(*begun).err
    assert len(np.load(tmp_path / "out.npy")) == 60
    assert not np.isnan(np.load(tmp_path / "out.npy")[:7]).any()


def test_a_run_killed_between_its_last_renames(ortkit: Ortkit, begun: list[object], tmp_path: Path) -> None:
    (tmp_path / ".out.npy.failed.partial").rename(tmp_path / "out.npy.failed.jsonl")

    assert "note: resuming after 24 completed records" in ortkit(*begun).err
    assert len((tmp_path / "out.npy.failed.jsonl").read_text().splitlines()) == 2


def test_a_second_process_is_refused(ortkit: Ortkit, begun: list[object], tmp_path: Path) -> None:
    before = (tmp_path / ".out.npy.partial").read_bytes()
    with (tmp_path / ".out.npy.partial").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for arguments in (begun, [*begun, "--restart"]):
            finished = ortkit(*arguments)
            assert finished.code == 1
            assert finished.err == (
                f"error: `{tmp_path / 'out.npy'}` is being written by another process, "
                "or its file system has no locks\n\n"
                "hint: wait for that process, or choose another file with `--output`\n"
            )
    assert (tmp_path / ".out.npy.partial").read_bytes() == before


def test_a_file_that_became_the_output_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process finishes between our opening of the hidden file and our lock on it."""
    files = OutputFiles(tmp_path / "out")
    real = fcntl.flock

    def finish_first(file: object, operation: int) -> None:
        if not files.target.exists():
            files.partial.rename(files.target)
        real(file, operation)

    monkeypatch.setattr("fcntl.flock", finish_first)
    with locked(files) as file:
        file.write(b"new")

    assert files.target.read_bytes() == b""
    assert files.partial.read_bytes() == b"new"


RUN = """
import sys, ortkit.runtime.encoder.base as e, ortkit.toolkit.cli as c
e.CHUNK = 32
sys.argv[0] = "ortkit"
c.main()
"""
KILLS = 6


@pytest.mark.slow
@pytest.mark.parametrize("output_format", ["jsonl", "npy"])
def test_kill_after_kill_the_output_is_that_of_a_run_in_one_go(
    ortkit: Ortkit, tiny_bundle: Bundle, tmp_path: Path, output_format: str
) -> None:
    source, output = write_corpus(tmp_path / "in", 4000), tmp_path / "out"
    arguments = ["embed", tiny_bundle.path, "--input", source, "--format", output_format, "--output"]
    ortkit(*arguments, tmp_path / "whole")
    command = [sys.executable, "-c", RUN, *map(str, arguments), str(output)]
    choose = random.Random(11)
    killed = resumed = attempts = 0
    while killed < KILLS:
        # A run that was not killed in time leaves nothing to resume.
        output.unlink(missing_ok=True)
        attempts += 1
        assert attempts < 10 * KILLS, f"only {killed} runs were still going when they were killed"
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        hidden = tmp_path / ".out.partial"
        before = hidden.stat().st_mtime_ns if hidden.exists() else None
        while process.poll() is None and (not hidden.exists() or hidden.stat().st_mtime_ns == before):
            time.sleep(0.002)
        time.sleep(choose.uniform(0, 0.25))
        process.send_signal(signal.SIGKILL)
        shown = process.stderr.read()
        process.stderr.close()
        killed += process.wait() == -signal.SIGKILL
        resumed += "resuming after" in shown

    finished = subprocess.run(command, capture_output=True, text=True, check=False)

    assert finished.returncode == 1, finished.stderr
    assert resumed >= KILLS // 2
    assert output.read_bytes() == (tmp_path / "whole").read_bytes()
    assert (tmp_path / "out.failed.jsonl").read_bytes() == (tmp_path / "whole.failed.jsonl").read_bytes()
    assert not [name for name in names(tmp_path) if name.startswith(".")]


SLOW = """
import sys, time, ortkit.runtime.encoder.embedder as e, ortkit.toolkit.cli as c
real = e.Embedder.embed_with_report
def slow(self, texts, *, progress=None, **options):
    for text in texts:
        time.sleep(0.1)
        progress(1)
    return real(self, texts, **options)
e.Embedder.embed_with_report = slow
sys.argv[0] = "ortkit"
c.main()
"""


def test_ctrl_c_keeps_completed_chunks_of_a_slow_run(tiny_bundle: Bundle, tmp_path: Path, ortkit: Ortkit) -> None:
    """At ten texts per second, the first are saved after a second or two, and the count is shown before."""
    source, output = write_corpus(tmp_path / "in", 60), tmp_path / "out.npy"
    arguments = ["embed", str(tiny_bundle.path), "--input", str(source), "--output", str(output)]

    shown = on_terminal([sys.executable, "-c", SLOW, *arguments], code=130, interrupt_at="17 texts")

    assert shown.startswith("\r\x1b[Kembedding ...\r\x1b[Kembedding [--------------------]   0%, 1 texts, ")
    assert lines_on_terminal(shown) == [
        "note: 8 records are complete; the same command resumes after them",
        "interrupted",
        "",
    ]
    finished = ortkit(*arguments)
    assert finished.err.startswith("note: resuming after 8 completed records\n")
    assert len(np.load(output)) == 60


def test_an_error_beside_a_bar_begins_on_its_own_line(tiny_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"fine\n\xff\n")
    arguments = [sys.executable, "-m", "ortkit", "embed", str(tiny_bundle.path), "--input", str(tmp_path / "in")]

    lines = lines_on_terminal(on_terminal(arguments, code=2))

    assert lines[0].startswith("embedding [##")
    assert lines[1:] == [
        "error: line 2 is not valid UTF-8 at byte 1",
        "",
        "hint: convert it, for example with `iconv`",
        "",
    ]


PEAK = """
import sys, ortkit.toolkit.cli as c
code = c.exit_code_of(lambda: c.cli.main(sys.argv[1:], standalone_mode=False))
print(next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(code)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells the peak of one process")
def test_memory_does_not_grow_with_the_input(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Eight times as many records of 4 kB, 64 MB in all."""
    line = json.dumps({"text": "the pump", "more": "x" * 4000}) + "\n"
    peaks = []
    for count in (2_000, 16_000):
        (tmp_path / "in").write_text(line * count)
        arguments = ["embed", tiny_bundle.path, "--input", tmp_path / "in", "--output", tmp_path / "out.npy"]
        command = [sys.executable, "-c", PEAK, *map(str, arguments)]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))

    assert np.load(tmp_path / "out.npy").shape == (16_000, 48)
    assert peaks[1] - peaks[0] < 25, f"MiB: {peaks}"


def test_lines_without_tokens_are_listed_as_failed(ortkit: Ortkit, tiny_bundle: Bundle, tmp_path: Path) -> None:
    bare = changed_bundle(tiny_bundle, tmp_path / "bare", tokenizer=without_special_tokens)
    lines = b"water\n\nwine\n \n" + b"word " * 60 + b"\n"

    finished = ortkit("embed", bare.path, "--output", tmp_path / "out", "--long", "error", stdin=lines)

    assert finished.code == 1
    failed = [json.loads(line) for line in (tmp_path / "out.failed.jsonl").read_text().splitlines()]
    assert [(row["line"], row["error"]) for row in failed] == [
        (2, "line 2 has no tokens"),
        (4, "line 4 has no tokens"),
        (5, "line 5 is longer than the model's limit of 48 tokens"),
    ]
    rows = [json.loads(line)["embedding"] for line in (tmp_path / "out").read_text().splitlines()]
    assert [row is None for row in rows] == [False, True, False, True, True]


def test_without_an_output_a_line_without_tokens_is_named(ortkit: Ortkit, tiny_bundle: Bundle, tmp_path: Path) -> None:
    bare = changed_bundle(tiny_bundle, tmp_path / "bare", tokenizer=without_special_tokens)

    finished = ortkit("embed", bare.path, stdin=b"water\n\n")

    assert finished.code == 2
    assert finished.err.startswith("error: line 2 has no tokens\n\nhint: leave it out")
