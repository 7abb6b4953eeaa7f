"""Result files of the benchmarks: what is written, compared and quoted in README."""

from __future__ import annotations

import dataclasses
import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks import compare, embedding, lookup, readme_table, reranking, results, rounds
from benchmarks.compare import Verdict, judged
from benchmarks.readme_table import README, section_of, table_of, unfounded, with_table
from benchmarks.results import (
    FORMAT,
    RESULTS,
    BenchmarkResult,
    Better,
    Cpu,
    Figure,
    ResultError,
    Source,
    Spread,
    plain_figure,
    quoted,
    rate_figure,
    read,
    read_all,
    rounded,
    save,
    system_of,
    text_of,
    time_figure,
    write,
)
from ortkit.runtime.session.cpu_class import CpuClass, this_cpu_class

FILES = sorted(RESULTS.rglob("*.json"))
NAME = re.compile(r"(?!-)[a-z0-9_.-]+\.json")


def result_of(*figures: Figure, **changes: object) -> BenchmarkResult:
    """A quiet run on a VNNI CPU."""
    result = BenchmarkResult(
        format=FORMAT,
        benchmark="embedding",
        date="2027-01-02T03:04:05Z",
        cpu=Cpu(CpuClass.X86_VNNI, "EPYC 9", ("avx2", "avx512_vnni"), 2, int8_overflows=False),
        packages={"onnxruntime": "1.32.0"},
        commit="0123456789ab",
        changed=False,
        command="python -m benchmarks.embedding",
        repeats=3,
        busy_cores=0.02,
        transcribed=False,
        source=None,
        note=None,
        figures=figures,
    )
    return dataclasses.replace(result, **changes)  # type: ignore[arg-type]


def embed(ours: Sequence[float], theirs: Sequence[float] = (50, 50, 50), name: str = "openvino 1.2.3 int8") -> Figure:
    return rate_figure("embed", name, theirs, ours, "sentences/s")


# What is in the repository.


@pytest.mark.parametrize("path", FILES, ids=[f"{path.parent.name}/{path.stem}" for path in FILES])
def test_a_result_file_says_where_its_figures_are_from(path: Path) -> None:
    result = read(path)
    spreads = [one for figure in result.figures for one in (figure.value, figure.ratio) if one is not None]

    assert path.parent.name == result.cpu.cpu_class.value
    assert NAME.fullmatch(path.name)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d(T\d\d:\d\d:\d\dZ)?", result.date)
    assert len({figure.key for figure in result.figures}) == len(result.figures) > 0
    assert all(figure.value is not None or figure.ratio is not None for figure in result.figures)
    assert path.read_text(encoding="utf-8") == text_of(result)
    if result.transcribed:
        assert result.source is not None
        assert result.source.date >= result.date[:10]
        assert not [one for one in spreads if one.rounds], "a document states no rounds: do not invent them"
    else:
        assert result.source is None
        assert result.commit is not None
        assert result.busy_cores is not None
        assert {"python", "onnxruntime", "numpy"} <= result.packages.keys()
        measured = [one for one in spreads if one.rounds]
        assert {len(one.rounds) for one in measured} == {result.repeats}
        for one in measured:
            ordered = (rounded(statistics.median(one.rounds)), min(one.rounds), max(one.rounds))
            assert (one.median, one.low, one.high) == ordered


def test_all_that_is_transcribed_is_within_its_range() -> None:
    spreads = [one for result in read_all(RESULTS) for f in result.figures for one in (f.value, f.ratio) if one]

    assert not [one for one in spreads if one.low is not None and not one.low <= one.median <= (one.high or 0)]


def test_the_readme_is_what_the_result_files_give() -> None:
    """`python -m benchmarks.readme_table` writes it."""
    readme, found = README.read_text(encoding="utf-8"), read_all(RESULTS)

    assert with_table(readme, table_of(found)) == readme
    assert unfounded(readme, found) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.97 of its speed, 1.0 to 1.14", []),
        ("0.98 of its speed", ["0.98"]),
        ("12.3 times", ["12.3"]),
        ("14 times, 97% of it, 1,234 ms", ["14", "1,234"]),
        ("100 passages, 12 layers, after 22 / 900 tokens, version 1.2.3, 2027-01-02, SmolLM2-135M", []),
    ],
)
def test_a_figure_that_no_result_file_has_is_found(text: str, expected: list[str]) -> None:
    found = [result_of(embed([48.5, 50, 48], [50, 50, 42]))]
    readme = f"# ortkit\n\n97.9 here\n\n## How it compares\n\n{text}\n\n## Models\n\n97.8 there\n"

    assert section_of(readme).strip() == text
    assert unfounded(readme, found) == expected


# What is written.


def test_systems_have_the_same_name_in_all_versions() -> None:
    assert system_of("openvino 2026.4.1 int8, 1,024 tokens a batch") == ("openvino int8", "2026.4.1")
    assert system_of("openvino 2026.4.1 int8, 512 tokens a batch") == ("openvino int8", "2026.4.1")
    assert system_of("fastembed 0.9.1 fp32, batch of 1") == ("fastembed fp32, batch of 1", "0.9.1")
    assert system_of("llama.cpp, llama-cpp-python 0.3.36 Q4_0") == ("llama.cpp, llama-cpp-python Q4_0", "0.3.36")
    assert system_of("transformers 4.57.6 torch fp32") == ("transformers torch fp32", "4.57.6")
    assert system_of("torch 2.13.0+cpu fp32") == ("torch fp32", "2.13.0+cpu")
    assert system_of("ortkit int8") == ("ortkit int8", None)


def test_the_ratio_of_a_figure_is_that_of_each_round() -> None:
    rate = rate_figure("embed", "peer", [100, 50, 200], [50, 100, 300], "sentences/s")
    time = time_figure("rerank", "peer", [0.1, 0.2, 0.05], [0.2, 0.1, 0.1], unit="ms")

    assert rate.value == Spread(100, 50, 200, (100, 50, 200))
    assert rate.ratio == Spread(1.5, 0.5, 2, (0.5, 2, 1.5))
    assert (rate.better, time.better) == (Better.HIGHER, Better.LOWER)
    assert time.value == Spread(100, 50, 200, (100, 200, 50))
    assert time.ratio == Spread(0.5, 0.5, 2, (0.5, 2, 0.5))
    assert rate_figure("embed", "ortkit int8", [1 / 3], None, "sentences/s").value == Spread(
        0.33333, 0.33333, 0.33333, (0.33333,)
    )


def test_a_result_is_written_and_read(tmp_path: Path) -> None:
    result = result_of(embed([1, 2, 3]), plain_figure("size", "ortkit int4", 83.9, "MB", Better.LOWER))
    path = tmp_path / "new" / "embedding.json"

    write(path, result)

    assert read(path) == result
    assert json.loads(path.read_text())["cpu"]["cpu_class"] == "x86-vnni"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda fields: fields.update(format=2), "has the format 2; supported: 1"),
        (lambda fields: fields.update(speed=1), "is not a result file: `speed` is not a known field"),
        (lambda fields: fields.pop("cpu"), "is not a result file: `cpu` is missing"),
        (lambda fields: fields["cpu"].update(cpu_class="vnni"), "is not a result file: `cpu.cpu_class`"),
    ],
)
def test_a_file_that_is_not_a_result(tmp_path: Path, change: object, expected: str) -> None:
    fields = json.loads(text_of(result_of(embed([1, 2, 3]))))
    change(fields)  # type: ignore[operator]
    (tmp_path / "a.json").write_text(json.dumps(fields))

    with pytest.raises(ResultError, match=re.escape(expected)):
        read_all(tmp_path)


@pytest.mark.parametrize("busy", [0.0, 0.8])
def test_a_benchmark_saves_machine_versions_and_rounds(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    busy: float,
) -> None:
    options = reranking.parse_options(["--repeats", "2", "--save", str(tmp_path), "--save-as", "reranking-some"])
    monkeypatch.setattr(rounds, "_BUSY", [busy, busy])
    monkeypatch.setattr(
        "sys.argv",
        ["benchmarks/reranking.py", "--repeats", "2", "--peers", "/home/ada/.venv-peers", "--plot=/tmp/a.svg"],
    )
    path = tmp_path / this_cpu_class().value / "reranking-some.json"

    save(options, "reranking", [embed([1, 2], [1, 1])])
    save(options, "reranking", [embed([1, 2], [1, 1], name="fastembed 0.9.1 fp32")])

    result, told = read(path), capsys.readouterr()
    # No folders of the machine.
    assert result.command == "python -m benchmarks.reranking --repeats 2 --peers .venv-peers --plot=a.svg"
    assert str(tmp_path) not in path.read_text()
    assert (result.benchmark, result.repeats, result.busy_cores) == ("reranking", 2, busy)
    assert result.quiet is (busy == 0)
    assert {"python", "onnxruntime", "numpy", "torch"} <= result.packages.keys()
    assert not result.transcribed
    [figure] = result.figures
    assert (figure.system, figure.version) == ("fastembed fp32", "0.9.1")
    assert figure.ratio == Spread(1.5, 1, 2, (1, 2))
    assert told.out.splitlines()[-1] == str(path)
    assert "note: the file no longer has embed: openvino int8; `--save-as` writes another file" in told.err
    assert ("the machine was busy" in told.err) is (busy > 0)


def test_nothing_is_saved_without_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = embedding.parse_options([])

    save(options, "embedding", [])

    assert list(tmp_path.iterdir()) == []
    assert embedding.parse_options(["--save"]).save == RESULTS


@pytest.mark.parametrize("name", ["../embedding", "Embedding", ""])
def test_the_name_of_a_file(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        embedding.parse_options(["--save-as", name])
    assert f"`{name}` must have lower case letters, digits, `-`, `_` and `.` alone" in capsys.readouterr().err


def test_the_pauses_of_all_rounds_say_how_busy_the_machine_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "PAUSE", 0.001)
    monkeypatch.setattr(rounds, "_BUSY", [])
    seconds = iter([0, 0, 0, 0.001])
    monkeypatch.setattr(rounds, "busy_seconds", lambda: next(seconds))

    assert rounds.busy_cores() is None
    rounds.take_turns([lambda: 1], 2)
    assert rounds.busy_cores() == pytest.approx(0.5)


def test_lookup_is_compared_with_the_same_answers_without_it() -> None:
    without = [lookup.Measured((1, 2, 3), seconds, 0, 0) for seconds in (1.0, 2.0)]
    with_drafts = [lookup.Measured((1, 2, 3), seconds, 8, 4) for seconds in (0.5, 0.5)]

    ours, other = lookup.figures_of("edits code", "ortkit int4", without, with_drafts)

    assert (ours.system, ours.ratio, other.system) == ("ortkit int4", None, "ortkit int4, without")
    assert ours.value == Spread(4, 4, 4, (4, 4))
    assert other.ratio == Spread(3, 2, 4, (2, 4))


# What is compared.


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("1.00 0.98 1.02", "1.00 0.90 1.10", Verdict.EQUAL),
        ("1.00 0.98 1.02", "1.03 1.01 1.05", Verdict.BETTER),
        ("1.00 0.98 1.02", "0.97 0.95 0.99", Verdict.WORSE),
        # The second median is within the first range, or the first within the second.
        ("1.00 0.98 1.02", "1.02 1.01 1.05", Verdict.WITHIN),
        ("1.00 0.98 1.02", "1.05 0.99 1.10", Verdict.WITHIN),
        ("1.00 0.98 1.02", "1.50", Verdict.NO_SPREAD),
    ],
)
def test_a_difference_counts_outside_both_ranges(first: str, second: str, expected: Verdict) -> None:
    both = [Spread(*map(float, text.split())) for text in (first, second)]

    assert judged(both[0], both[1], Better.HIGHER) is expected
    turned = {Verdict.BETTER: Verdict.WORSE, Verdict.WORSE: Verdict.BETTER}
    assert judged(both[0], both[1], Better.LOWER) is turned.get(expected, expected)


def compared(tmp_path: Path, first: BenchmarkResult, second: BenchmarkResult) -> int:
    for name, result in (("a", first), ("b", second)):
        write(tmp_path / name / result.cpu.cpu_class.value / "embedding.json", result)
    return compare.main([str(tmp_path / "a"), str(tmp_path / "b")])


def test_a_speed_that_fell_ends_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = compared(tmp_path, result_of(embed([50, 51, 49])), result_of(embed([40, 41, 39])))

    out = capsys.readouterr().out
    assert code == 1
    assert re.search(
        r"embed: openvino int8 +x86-vnni +ratio +1.00 \(0.98 to 1.02\) +0.80 \(0.78 to 0.82\) +0.800 +WORSE\n", out
    )
    assert out.endswith("\n\n1 WORSE\n")


def test_what_is_within_the_spread_or_better_ends_with_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = result_of(embed([50, 51, 49]), embed([50, 51, 49], name="fastembed fp32"), embed([1, 1, 1], name="old"))
    second = result_of(embed([50, 50.5, 49]), embed([60, 61, 59], name="fastembed fp32"))

    assert compared(tmp_path, first, second) == 0
    out = capsys.readouterr().out
    assert "only in A: embed (x86-vnni): old\n" in out
    assert out.endswith("\n1 better, 1 equal\n")


def test_seconds_of_another_cpu_are_not_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = rate_figure("embed", "ortkit int8", [100, 101, 99], None, "sentences/s")
    slower = rate_figure("embed", "ortkit int8", [50, 51, 49], None, "sentences/s")
    cosine, lower = (plain_figure("cosine", "ortkit int8", one, "cosine", Better.HIGHER) for one in (0.99, 0.98))
    cpu = dataclasses.replace(result_of().cpu, model="Core i9")

    assert compared(tmp_path, result_of(own, cosine), result_of(slower, lower, cpu=cpu)) == 0
    assert capsys.readouterr().out.endswith("\n1 differs, measured once, 1 another CPU model\n")
    assert compared(tmp_path, result_of(own), result_of(slower)) == 1


def test_busy_runs_and_other_classes_are_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, busy = result_of(embed([50, 51, 49])), result_of(embed([40, 41, 39]), busy_cores=1.5)

    assert compared(tmp_path / "busy", first, busy) == 2
    err = capsys.readouterr().err
    assert "not compared, the machine was busy: embedding of 2027-01-02T03:04:05Z\n" in err
    assert "error: the two have no figure of the same CPU class in common\n" in err
    of_arm = dataclasses.replace(first, cpu=dataclasses.replace(first.cpu, cpu_class=CpuClass.AARCH64_DOTPROD))
    assert compared(tmp_path / "classes", first, of_arm) == 2


@pytest.mark.parametrize(
    ("second", "expected"), [("none", "`none` is not a result file"), ("empty", "`empty` has no result files")]
)
def test_what_cannot_be_compared_ends_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], second: str, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    write(Path("a.json"), result_of(embed([1, 2, 3])))

    assert compare.main(["a.json", second]) == 2
    assert capsys.readouterr().err.startswith(f"error: {expected}")


# What is quoted.


def test_the_newest_figure_of_a_quiet_run_is_quoted() -> None:
    old = result_of(embed([50] * 3), embed([10] * 3, name="fastembed"), date="2026-11-24")
    day, more = (result_of(embed([one] * 3), date="2026-11-30", repeats=n) for one, n in ((60, 21), (70, 9)))
    busy = result_of(embed([90] * 3), date="2026-12-24", busy_cores=0.5)
    unknown = result_of(embed([80] * 3), date="2026-11-29", busy_cores=None)

    found = quoted([busy, day, more, old, unknown])[CpuClass.X86_VNNI]

    assert found["embed", "openvino int8"].result == day
    assert found["embed", "fastembed"].result == old
    assert quoted([busy]) == {}


def test_the_table_has_a_column_for_each_class_that_was_measured() -> None:
    vnni = result_of(
        embed([48.5] * 3),
        embed([100] * 3, name="fastembed 0.9.1 fp32"),
        date="2026-11-30",
        transcribed=True,
        source=Source("README.md", "0123456", "2026-11-30"),
    )
    arm = dataclasses.replace(
        result_of(rate_figure("decode after 22", "onnxruntime-genai 0.18.0 int4", [10] * 3, [11] * 3, "tokens/s")),
        cpu=Cpu(CpuClass.AARCH64_DOTPROD, None, (), None, None),
    )

    lines = table_of([arm, vnni]).splitlines()

    assert lines[0] == "| ortkit | peer | x86 with VNNI | aarch64 with dot product |"
    assert lines[1] == "|---|---|---|---|"
    assert "| embed, all-MiniLM-L6-v2 int8 | OpenVINO int8 | 0.97 | not measured |" in lines
    assert "| | fastembed fp32, batch of 256 (its default) / of 1 | 2.00 / - | not measured |" in lines
    assert (
        "| generate, SmolLM2-135M int4, after 22 / 900 tokens | onnxruntime-genai int4 | not measured | 1.10 / - |"
    ) in lines
    assert lines[-2:] == [
        "x86 with VNNI: measured 2026-11-30 (EPYC 9); all transcribed from the documentation of earlier runs.",
        "aarch64 with dot product: measured 2027-01-02.",
    ]


def test_the_table_is_written_between_its_markers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme, folder = tmp_path / "README.md", tmp_path / "results"
    text = "## How it compares\n\nbefore\n<!-- benchmarks: begin -->\nold\n<!-- benchmarks: end -->\nafter {}\n"
    write(folder / "x86-vnni" / "embedding.json", result_of(embed([48.5] * 3)))
    readme.write_text(text.format("0.97"))
    asked = ["--readme", str(readme), "--results", str(folder)]

    assert readme_table.main([*asked, "--check"]) == 1
    assert "README's table is not that of the results" in capsys.readouterr().err
    assert readme.read_text() == text.format("0.97")
    assert readme_table.main(asked) == 0
    assert "old" not in readme.read_text()
    assert readme_table.main([*asked, "--check"]) == 0

    readme.write_text(readme.read_text().replace("after 0.97", "after 0.99"))
    assert readme_table.main([*asked, "--check"]) == 1
    assert capsys.readouterr().err == "README states figures that no result file has: 0.99\n"


def test_every_row_of_the_table_names_a_figure_of_some_result() -> None:
    """A row whose measure or system is misspelt would be `not measured` for ever."""
    figures = {figure.key for result in read_all(RESULTS) for figure in result.figures}

    assert not [key for row in readme_table.ROWS for key in row.keys if key not in figures]


def test_outside_of_a_checkout_no_commit_is_stated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(results, "REPOSITORY", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))

    assert results.git("rev-parse", "HEAD") is None
