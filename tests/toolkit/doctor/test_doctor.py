"""`ortkit doctor`: report, JSON, exit codes, and a broken installation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from ortkit import Bundle
from ortkit.runtime.host_facts import Libc
from ortkit.toolkit.doctor.checks import check_host
from ortkit.toolkit.doctor.finding import RANKS, Severity, error, exit_code_of, note, ok, warning, worst_of
from ortkit.toolkit.doctor.report import lines_of, report_of, summary_of
from tests.commands import Finished
from tests.tiny_bundles import write_embedder
from tests.toolkit.doctor.hosts import GOOD, host

Ortkit = Callable[..., Finished]
SOME = [
    ok("a", "fine", size=1),
    note("b", "so", "because"),
    warning("c", "slow", "because", "run `x`"),
    error("d", "broken", "because", "run `y`", 8),
    error("e", "worse", "because", "run `z`", 7),
]


def test_a_good_machine_has_no_complaint() -> None:
    assert {found.severity for found in check_host(GOOD)} == {Severity.OK}


def test_the_exit_code_is_that_of_the_worst_error() -> None:
    assert [exit_code_of(SOME[:count]) for count in range(6)] == [0, 0, 0, 0, 8, 7]
    errors = [error("x", "broken", "because", "run `x`", code) for code in (6, 5, 2, 1, 9, 8, 7)]
    assert [exit_code_of(errors[: count + 1]) for count in range(7)] == [6, 5, 2, 1, 9, 8, 7]
    assert exit_code_of(errors[::-1]) == 7
    assert [worst_of(SOME[:count]) for count in range(1, 5)] == list(RANKS)
    # A system on which nothing runs is worse than the packages that are missing there.
    assert exit_code_of(list(check_host(host(libc=Libc("musl"), imports={})))) == 8


def test_the_report_for_people() -> None:
    assert [list(lines_of(found)) for found in SOME[:3]] == [
        ["ok       a: fine"],
        ["note     b: so", "           why: because"],
        ["warning  c: slow", "           why: because", "           do:  run `x`"],
    ]
    assert summary_of(SOME) == "2 errors, 1 warning, 1 note, 1 ok"
    assert summary_of(SOME[:1]) == "1 ok"


def test_the_report_for_programs() -> None:
    report = report_of(SOME)

    assert {name: report[name] for name in ("schema", "worst", "exit_code")} == {
        "schema": 1,
        "worst": "error",
        "exit_code": 7,
    }
    assert report["findings"][0] == {
        "check": "a",
        "severity": "ok",
        "bundle": None,
        "what": "fine",
        "why": None,
        "do": None,
        "exit_code": 0,
        "facts": {"size": 1},
    }
    assert json.loads(json.dumps(report)) == report


def test_this_machine(ortkit: Ortkit, tmp_path: Path) -> None:
    """Whatever the machine of the test lacks, each check has its say."""
    bundle = write_embedder(tmp_path / "embedder")

    finished = ortkit("doctor", bundle.path, "--json")
    report = json.loads(finished.out)

    assert finished.err == ""
    assert finished.code == report["exit_code"]
    assert {found["check"] for found in report["findings"]} >= {
        *("platform", "libc", "cpu", "python", "import-numpy", "import-onnxruntime", "telemetry", "cores", "memory"),
        *("open-files", "temporary-folder", "clock", "encoding", "variables", "secrets", "providers", "policy"),
        *("bundle-files", "bundle-signature", "bundle-provider", "bundle-memory", "bundle-certificate"),
    }
    certificate = next(found for found in report["findings"] if found["check"] == "bundle-certificate")
    assert certificate["facts"]["golden_outputs"] == 3
    assert certificate["bundle"] == str(bundle.path)


def test_text_and_exit_code_of_a_missing_bundle(ortkit: Ortkit, tmp_path: Path) -> None:
    finished = ortkit("doctor", tmp_path / "gone", "--quick")
    lines = finished.out.decode().splitlines()

    assert finished.code == 5
    assert f"error    bundle-files: there is no bundle at `{tmp_path / 'gone'}`" in lines
    assert "           do:  create one with `ortkit export MODEL`, which prints its folder" in lines
    assert lines[-1].startswith("1 error, ")


def test_a_broken_installation(tmp_path: Path) -> None:
    """Neither numpy nor onnxruntime nor tokenizers: findings, not a traceback."""
    bundle = write_embedder(tmp_path / "embedder")
    broken = tmp_path / "broken"
    for name in ("numpy", "onnxruntime", "tokenizers"):
        (broken / name).mkdir(parents=True)
        (broken / name / "__init__.py").write_text("raise ImportError('libfoo.so.1: cannot open shared object file')\n")
    environment = os.environ | {"PYTHONPATH": f"{broken}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}

    finished = subprocess.run(
        [sys.executable, "-m", "ortkit", "doctor", str(bundle.path), "--json"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=Path(__file__).parents[3],
    )
    assert finished.stderr == ""
    report = json.loads(finished.stdout)
    by_check = {found["check"]: found for found in report["findings"]}

    assert finished.returncode == report["exit_code"] == 1
    assert by_check["import-numpy"]["what"] == (
        "`numpy` cannot be imported: ImportError: libfoo.so.1: cannot open shared object file"
    )
    assert by_check["bundle-files"]["severity"] == "ok"
    assert by_check["bundle-provider"]["why"] == "it needs `numpy`, `onnxruntime`, `tokenizers`"


def test_nothing_heavy_is_loaded_for_the_help() -> None:
    code = "import sys; import ortkit.toolkit.doctor.checks; print(sorted({'numpy', 'onnxruntime'} & set(sys.modules)))"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_check_is_documented(decoder_bundle: Bundle, ortkit: Ortkit) -> None:
    """Those of this machine; the page has all names."""
    page = (Path(__file__).parents[3] / "docs" / "doctor.md").read_text("utf-8")
    report = json.loads(ortkit("doctor", decoder_bundle.path, "--quick", "--json").out)

    assert len(report["findings"]) > 20
    for found in report["findings"]:
        check = "import-*" if found["check"].startswith("import-") else found["check"]
        assert f"`{check}`" in page
