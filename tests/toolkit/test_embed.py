from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ortkit import Bundle, Embedder, embedding_ranges
from ortkit.runtime.encoder.embedding_types import unit_ranges
from tests.commands import Finished, on_terminal

Ortkit = Callable[..., Finished]
TEXTS = ["the pump runs dry", "water", "größer"]


@pytest.fixture(scope="module")
def expected(int8_bundle: Bundle) -> np.ndarray:
    return Embedder(int8_bundle).embed(TEXTS)


def rows(out: bytes) -> list[dict]:
    return [json.loads(line) for line in out.decode().splitlines()]


def test_arguments_to_jsonl_lose_no_bit(ortkit: Ortkit, int8_bundle: Bundle, expected: np.ndarray) -> None:
    finished = ortkit("embed", int8_bundle.path, *TEXTS)

    assert (finished.code, finished.err) == (0, "")
    assert [row["text"] for row in rows(finished.out)] == TEXTS
    assert np.array_equal(np.array([row["embedding"] for row in rows(finished.out)], np.float32), expected)


def test_a_pipe_of_lines(ortkit: Ortkit, int8_bundle: Bundle, expected: np.ndarray) -> None:
    finished = ortkit("embed", int8_bundle.path, "--format", "npy", stdin="\n".join(TEXTS).encode())

    assert np.array_equal(np.load(io.BytesIO(finished.out)), expected)


def test_jsonl_fields_are_passed_through(ortkit: Ortkit, int8_bundle: Bundle, expected: np.ndarray) -> None:
    lines = [json.dumps({"id": index, "text": text, "tags": ["ü"]}) for index, text in enumerate(TEXTS)]
    finished = ortkit("embed", int8_bundle.path, "--format", "json", "--input", "-", stdin="\n".join(lines).encode())
    found = json.loads(finished.out)

    assert [(row["id"], row["text"], row["tags"]) for row in found] == [(i, t, ["ü"]) for i, t in enumerate(TEXTS)]
    assert np.array_equal(np.array([row["embedding"] for row in found], np.float32), expected)


def test_vectors_can_be_shortened(ortkit: Ortkit, int8_bundle: Bundle) -> None:
    finished = ortkit("embed", int8_bundle.path, "--dim", 32, "--format", "npy", *TEXTS)

    assert np.array_equal(np.load(io.BytesIO(finished.out)), Embedder(int8_bundle).embed(TEXTS, dim=32))
    assert np.load(io.BytesIO(ortkit("embed", int8_bundle.path, "--dim", 32, "--format", "npy").out)).shape == (0, 32)
    too_many = ortkit("embed", int8_bundle.path, "--dim", 500, "x")
    assert (too_many.code, too_many.err) == (
        2,
        "error: `dim` must be from 1 to 384, the model's dimension, not 500\n",
    )


def test_an_old_embedding_is_replaced(ortkit: Ortkit, int8_bundle: Bundle) -> None:
    finished = ortkit("embed", int8_bundle.path, stdin=b'{"text": "water", "embedding": [1]}')

    assert finished.out.count(b'"embedding"') == 1
    assert len(rows(finished.out)[0]["embedding"]) == 384


def test_a_file_to_a_file(ortkit: Ortkit, int8_bundle: Bundle, expected: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    output = tmp_path / "out.npy"

    finished = ortkit("embed", int8_bundle.path, "--input", tmp_path / "in.txt", "--format", "npy", "--output", output)

    assert (finished.code, finished.out) == (0, b"")
    assert np.array_equal(np.load(output), expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "out.npy"]
    np.save(tmp_path / "saved.npy", expected)
    assert output.read_bytes() == (tmp_path / "saved.npy").read_bytes(), "as numpy itself writes it"


def test_the_format_follows_the_name_of_the_output(
    ortkit: Ortkit, int8_bundle: Bundle, expected: np.ndarray, tmp_path: Path
) -> None:
    ortkit("embed", int8_bundle.path, *TEXTS, "--output", tmp_path / "out.npy")
    ortkit("embed", int8_bundle.path, *TEXTS, "--output", tmp_path / "out.txt")

    assert np.array_equal(np.load(tmp_path / "out.npy"), expected)
    assert len(rows((tmp_path / "out.txt").read_bytes())) == len(TEXTS)


def test_more_texts_than_a_chunk_stay_in_order(
    ortkit: Ortkit, int8_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ortkit.runtime.encoder.base.CHUNK", 4)
    texts = [f"{'number ' * (index % 5)}{index}" for index in range(11)]

    finished = ortkit("embed", int8_bundle.path, stdin="\n".join(texts).encode())

    assert [row["text"] for row in rows(finished.out)] == texts
    whole = Embedder(int8_bundle).embed(texts)
    assert np.array_equal(np.array([row["embedding"] for row in rows(finished.out)], np.float32), whole)


@pytest.mark.parametrize(("output_format", "expected_out"), [("jsonl", b""), ("json", b"[]\n")])
def test_no_texts_in_a_pipe(ortkit: Ortkit, int8_bundle: Bundle, output_format: str, expected_out: bytes) -> None:
    finished = ortkit("embed", int8_bundle.path, "--format", output_format)

    assert (finished.code, finished.out, finished.err) == (0, expected_out, "")


def test_no_texts_in_a_pipe_as_npy(ortkit: Ortkit, int8_bundle: Bundle) -> None:
    finished = ortkit("embed", int8_bundle.path, "--format", "npy")

    assert np.load(io.BytesIO(finished.out)).shape == (0, 384)


def test_long_and_empty_texts_are_reported_with_their_lines(ortkit: Ortkit, int8_bundle: Bundle) -> None:
    texts = ["short", "", "long " * 400, " \t", *["long " * 300] * 6]

    finished = ortkit("embed", int8_bundle.path, stdin="\n".join(texts).encode())

    assert finished.code == 0
    assert finished.err.splitlines() == [
        "warning: 7 of 10 texts were longer than 256 tokens and cut there (line 3, line 5, line 6, line 7, ...)",
        "warning: 2 of 10 texts are empty, and the embedding of an empty text is meaningless (line 2, line 4)",
    ]
    assert len(rows(finished.out)) == 10


def test_a_single_one_is_reported_in_the_singular(ortkit: Ortkit, int8_bundle: Bundle) -> None:
    finished = ortkit("embed", int8_bundle.path, "", "long " * 300)

    assert finished.err.splitlines() == [
        "warning: 1 of 2 texts was longer than 256 tokens and cut there (text 2)",
        "warning: 1 of 2 texts is empty, and the embedding of an empty text is meaningless (text 1)",
    ]


def test_a_megabyte_of_text(ortkit: Ortkit, int8_bundle: Bundle) -> None:
    finished = ortkit("embed", int8_bundle.path, stdin=b"word " * 210_000)

    assert finished.code == 0
    assert "1 of 1 texts was longer than 256 tokens" in finished.err


@pytest.mark.parametrize("option", [["--no-truncate"], ["--long", "error"], ["--no-truncate", "--long", "error"]])
def test_cutting_can_be_forbidden(ortkit: Ortkit, int8_bundle: Bundle, option: list[str]) -> None:
    finished = ortkit("embed", int8_bundle.path, *option, "short", "long " * 300)

    assert (finished.code, finished.out) == (2, b"")
    assert finished.err == (
        "error: text 2 is longer than the model's limit of 256 tokens\n\n"
        "hint: split it, or use `--long truncate`, or `--long mean` to average the embeddings of its chunks\n"
    )


def test_long_texts_can_be_read_in_chunks(ortkit: Ortkit, int8_bundle: Bundle) -> None:
    texts = ["short", "The pump stopped. " * 100]
    finished = ortkit("embed", int8_bundle.path, "--long", "mean", "--format", "npy", *texts)

    assert finished.code == 0
    assert finished.err == "note: 1 of 2 texts was longer than 256 tokens, embedded in chunks (text 2)\n"
    assert np.array_equal(np.load(io.BytesIO(finished.out)), Embedder(int8_bundle).embed(texts, long="mean"))


@pytest.mark.parametrize(
    ("stdin", "message"),
    [
        (
            b"fine\n\xff\xfe\n",
            "error: line 2 is not valid UTF-8 at byte 1\n\nhint: convert it, for example with `iconv`\n",
        ),
        (
            b"fine\nbad\0\n",
            "error: line 2 has a NUL byte and is not text\n\nhint: give texts in UTF-8, one per line\n",
        ),
        (
            b'{"text": "fine"}\n{"text": \n',
            "error: line 2 is not valid JSON: Expecting value: line 1 column 10 (char 9)\n",
        ),
    ],
)
def test_bad_input_names_its_line(ortkit: Ortkit, int8_bundle: Bundle, stdin: bytes, message: str) -> None:
    finished = ortkit("embed", int8_bundle.path, stdin=stdin)

    assert (finished.code, finished.err) == (2, message)
    assert [row["text"] for row in rows(finished.out)] == ["fine"], "what came before the line is not lost"


def test_bad_usage(ortkit: Ortkit, int8_bundle: Bundle, tmp_path: Path) -> None:
    path = int8_bundle.path
    (tmp_path / "text").write_text("1 2 3")
    np.save(tmp_path / "words.npy", np.array(["a"]))
    for arguments, code, message in [
        (["x", "--input", "-"], 2, "error: texts are given as arguments and with `--input`: give one of the two"),
        (["--input", "nothing.txt"], 5, "error: there is no file `nothing.txt`"),
        (["--input", tmp_path], 2, f"error: `{tmp_path}` cannot be read: Is a directory"),
        (
            ["x", "--no-truncate", "--long", "mean"],
            2,
            "error: `--no-truncate` and `--long mean` contradict each other\n\nhint: give one of the two",
        ),
        (
            ["x", "--restart"],
            2,
            "error: `--restart` needs `--output`\n\nhint: without a file, every run starts from the beginning",
        ),
        (["x", "--ranges", "nothing.npy"], 5, "error: there is no file `nothing.npy`"),
        (
            ["x", "--dtype", "int8", "--ranges", tmp_path / "text"],
            2,
            f"error: `{tmp_path / 'text'}` is not an npy file\n\nhint: `--ranges` takes the .ranges.npy file of a ",
        ),
        (
            ["x", "--dtype", "int8", "--ranges", tmp_path / "words.npy"],
            2,
            f"error: `{tmp_path / 'words.npy'}` must hold numbers, not <U1",
        ),
        (["x", "--prompt", "query"], 2, "error: the model has no prompt `query`\n\nhint: supported: none"),
        (["x", "--output", tmp_path], 1, f"error: `{tmp_path}` cannot be written: it is a folder"),
        (["x", "--output", "."], 1, "error: `.` cannot be written: it is a folder\n"),
        (["x", "--output", ""], 1, "error: the name of the file to write is empty\n\nhint: name a file\n"),
        (["--output", "."], 1, "error: `.` cannot be written: it is a folder\n"),
        (
            ["x", "--output", tmp_path / "no" / "out.json"],
            1,
            f"error: `{tmp_path / 'no' / 'out.json'}` cannot be written: No such file or directory",
        ),
    ]:
        finished = ortkit("embed", path, *arguments)
        assert finished.code == code
        assert finished.err.startswith(message), finished.err
        assert finished.out == b""


def test_no_texts_on_a_terminal(ortkit: Ortkit) -> None:
    finished = ortkit("embed", "bundle", tty=True)

    assert finished.code == 2
    assert finished.err == (
        'error: no texts to embed\n\nhint: ortkit embed bundle "some text", or `--input FILE`, or a pipe\n'
    )


@pytest.mark.parametrize("arguments", [["--prompt", "query"], ["x", "--long", "error", "long " * 300]])
def test_a_failed_run_leaves_the_old_output(
    ortkit: Ortkit, int8_bundle: Bundle, tmp_path: Path, arguments: list[str]
) -> None:
    output = tmp_path / "out.jsonl"
    output.write_text("old")

    finished = ortkit("embed", int8_bundle.path, "--output", output, *arguments, stdin=b"fine\n")

    assert finished.code == 2
    assert output.read_text() == "old"
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("dtype", ["float16", "int8", "binary", "ubinary"])
def test_vectors_are_stored_as_asked(ortkit: Ortkit, int8_bundle: Bundle, dtype: str) -> None:
    expected = Embedder(int8_bundle).embed(TEXTS, dtype=dtype, dim=60)

    as_npy = ortkit("embed", int8_bundle.path, "--dtype", dtype, "--dim", 60, "--format", "npy", *TEXTS)
    as_json = ortkit("embed", int8_bundle.path, "--dtype", dtype, "--dim", 60, *TEXTS)

    found = np.load(io.BytesIO(as_npy.out))
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)
    assert np.array_equal(np.array([row["embedding"] for row in rows(as_json.out)], expected.dtype), expected)


def test_int8_in_a_pipe_says_its_range(ortkit: Ortkit, int8_bundle: Bundle, tmp_path: Path) -> None:
    np.save(tmp_path / "own.npy", unit_ranges(384))

    finished = ortkit("embed", int8_bundle.path, "--dtype", "int8", "water")
    told = ortkit("embed", int8_bundle.path, "--dtype", "int8", "--ranges", tmp_path / "own.npy", "water")

    assert finished.err == "note: int8 covers -0.3062 to 0.3062, the fixed range for normalized embeddings\n"
    assert told.err == ""
    assert told.out == finished.out


def test_int8_says_which_ranges_it_used_and_takes_them_again(
    ortkit: Ortkit, int8_bundle: Bundle, tmp_path: Path
) -> None:
    embedder = Embedder(int8_bundle)
    own = embedding_ranges(embedder.embed(TEXTS))
    np.save(tmp_path / "own.npy", own)
    output, ranges_file = tmp_path / "out.npy", tmp_path / "out.npy.ranges.npy"
    note = f"note: the int8 ranges are in `{ranges_file}`; use them for queries too, with `--ranges`\n"

    for options, used in [([], unit_ranges(384)), (["--ranges", tmp_path / "own.npy"], own)]:
        for given in (TEXTS, []):
            arguments = ["--dtype", "int8", "--output", output, *options, *given]
            stdin = b"" if given else "\n".join(TEXTS).encode()
            finished = ortkit("embed", int8_bundle.path, *arguments, stdin=stdin)
            assert (finished.code, finished.err) == (0, note)
            assert np.array_equal(np.load(ranges_file), used)
            assert np.array_equal(np.load(output), embedder.embed(TEXTS, dtype="int8", ranges=used))


COMMAND = [sys.executable, "-m", "ortkit", "embed"]


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_is_reported(int8_bundle: Bundle, unbuffered: str) -> None:
    finished = subprocess.run(
        ["sh", "-c", f"exec {' '.join(COMMAND)} {int8_bundle.path} hello > /dev/full"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
    )

    assert finished.returncode == 1
    assert finished.stderr == "error: No space left on device\n"


def test_a_reader_that_leaves_ends_it_quietly(int8_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "many.txt").write_text("a line\n" * 5000)
    script = f"{' '.join(COMMAND)} {int8_bundle.path} --input {tmp_path}/many.txt | head -1; echo ${{PIPESTATUS[0]}}"

    finished = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)

    line, code = finished.stdout.splitlines()
    assert json.loads(line)["text"] == "a line"
    assert code == "141"
    assert finished.stderr == ""


def test_a_bar_on_a_terminal_and_none_elsewhere(tiny_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "many.txt").write_text("a line\n" * 3000)
    arguments = [*COMMAND, str(tiny_bundle.path), "--input", str(tmp_path / "many.txt")]

    shown = on_terminal(arguments)
    piped = subprocess.run(arguments, capture_output=True, text=True, check=True)

    assert "embedding" in shown
    assert "[####################] 100%, 3000 texts, " in shown
    assert " texts/s, 0 s left" in shown
    assert piped.stderr == ""


def test_a_count_for_a_pipe_on_a_terminal(tiny_bundle: Bundle) -> None:
    feeder = subprocess.Popen(["sh", "-c", "yes 'a line' | head -3000"], stdout=subprocess.PIPE)
    assert feeder.stdout is not None

    shown = on_terminal([*COMMAND, str(tiny_bundle.path)], stdin=feeder.stdout.fileno())

    assert "embedding 0.0 MB, 3000 texts, " in shown
    feeder.stdout.close()
    feeder.wait()


def test_binary_is_not_put_on_a_terminal(int8_bundle: Bundle) -> None:
    ours, theirs = pty.openpty()
    finished = subprocess.run(
        [*COMMAND, str(int8_bundle.path), "hello", "--format", "npy"],
        stdout=theirs,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(theirs)
    os.close(ours)

    assert finished.returncode == 2
    assert finished.stderr == "error: npy is binary, and stdout is a terminal\n\nhint: add `--output embeddings.npy`\n"
