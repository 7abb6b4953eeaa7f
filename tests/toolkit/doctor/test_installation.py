# ruff: noqa: E501 - texts as they are printed
from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from ortkit.runtime.session.onnxruntime_import import OLDEST_ONNXRUNTIME
from ortkit.toolkit.doctor.installation import check_imports, check_packages, check_telemetry
from ortkit.toolkit.doctor.packages import REQUIREMENTS, Imported, Package, find_packages, import_all
from tests.toolkit.doctor.hosts import GOOD, SITE, host, text_of

PYTHON = "/opt/ortkit/bin/python3"


def again(name: str) -> str:
    return (
        f"do: run `{PYTHON} -m pip uninstall -y {name}` until it finds none, then `{PYTHON} -m pip install --no-index "
        f"--find-links wheels {name}`"
    )


def test_the_dependencies_are_those_of_the_project() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text("utf-8"))["project"]

    assert sorted(project["dependencies"]) == sorted(f"{name}>={version}" for name, version in REQUIREMENTS.items())
    assert project["optional-dependencies"]["cpu"] == [f"onnxruntime>={OLDEST_ONNXRUNTIME}"]


def test_good_packages() -> None:
    assert [text_of(found) for found in check_packages(GOOD)] == [
        "ok packages: installed: click 8.2.1, jinja2 3.1.6, numpy 2.4.6, onnxruntime 1.31.1, tokenizers 0.22.2"
    ]
    assert [text_of(found) for found in check_packages(host(packages=()))] == [
        "ok packages: installed: none with metadata"
    ]


def test_packages_over_each_other() -> None:
    gpu = Package("onnxruntime-gpu", "1.31.1", SITE)

    assert [text_of(found) for found in check_packages(host(packages=(*GOOD.packages, gpu)))] == [
        (
            "error packages: `onnxruntime` 1.31.1 and `onnxruntime-gpu` 1.31.1 are installed over each other: all have the "
            "module `onnxruntime`\n"
            "why: each has overwritten files of those before it, so that providers are missing or crash\n"
            "do: run `pip uninstall -y onnxruntime onnxruntime-gpu`, then `pip install 'onnxruntime>=1.30'`\nexit: 1"
        )
    ]


def test_a_package_that_is_installed_twice() -> None:
    """In one folder; the same package in another folder of the search path is hidden, as it should be."""
    old, hidden = Package("numpy", "1.26.4", SITE), Package("tokenizers", "0.21.0", "/usr/lib/python3/dist-packages")

    assert [text_of(found) for found in check_packages(host(packages=(*GOOD.packages, old, hidden)))] == [
        (
            f"warning packages: `numpy` is installed twice in `{SITE}`: 2.4.6 and 1.26.4\n"
            f"why: an interrupted or forced installation has left files of both\n{again('numpy')}"
        )
    ]


def test_files_of_another_wheel() -> None:
    files = ("onnxruntime/capi/a.so", "onnxruntime/capi/b.so", "onnxruntime/c.py", "onnxruntime/d.py")
    damaged = Package("onnxruntime", "1.31.1", SITE, files)

    assert [text_of(found) for found in check_packages(host(packages=(damaged,)))] == [
        (
            "warning packages: files of `onnxruntime` 1.31.1 are missing or not those of its wheel: "
            "`onnxruntime/capi/a.so`, `onnxruntime/capi/b.so`, `onnxruntime/c.py` and 1 more\n"
            f"why: another package was installed over it, or a disk or a copy is damaged\n{again('onnxruntime')}"
        )
    ]


def test_good_imports() -> None:
    assert [text_of(found) for found in check_imports(GOOD)] == [
        "ok import-click: `click` 8.2.1 can be imported",
        "ok import-jinja2: `jinja2` 3.1.6 can be imported",
        "ok import-numpy: `numpy` 2.4.6 can be imported",
        "ok import-tokenizers: `tokenizers` 0.22.2 can be imported",
        "ok import-onnxruntime: `onnxruntime` 1.31.1 can be imported",
    ]


@pytest.mark.parametrize(
    ("module", "imported", "expected"),
    [
        (
            "numpy",
            Imported(missing=True),
            (
                "error import-numpy: `numpy` is not installed\nwhy: every model needs it\n"
                f"do: run `{PYTHON} -m pip install --no-index --find-links wheels 'numpy>=1.26'`\nexit: 1"
            ),
        ),
        (
            "onnxruntime",
            Imported(missing=True),
            (
                "error import-onnxruntime: `onnxruntime` is not installed\n"
                "why: it runs every model; before 1.30 LLMs crash or give wrong tokens\n"
                "do: run `pip install 'onnxruntime>=1.30'`, or for a GPU of NVIDIA `pip install 'onnxruntime-gpu>=1.30' "
                "'nvidia-cublas~=13.0' 'nvidia-cuda-runtime~=13.0' 'nvidia-cudnn-cu13~=9.0' 'nvidia-curand~=10.0'`, never "
                "both; offline add `--no-index --find-links wheels`\nexit: 1"
            ),
        ),
        (
            "onnxruntime",
            Imported("1.22.1"),
            (
                "error import-onnxruntime: `onnxruntime` 1.22.1 is installed, and ortkit needs 1.30 or newer\n"
                "why: it runs every model; before 1.30 LLMs crash or give wrong tokens\n"
                "do: run `pip install 'onnxruntime>=1.30'`, or for a GPU of NVIDIA `pip install 'onnxruntime-gpu>=1.30' "
                "'nvidia-cublas~=13.0' 'nvidia-cuda-runtime~=13.0' 'nvidia-cudnn-cu13~=9.0' 'nvidia-curand~=10.0'`, never "
                "both; offline add `--no-index --find-links wheels`\nexit: 1"
            ),
        ),
        (
            "numpy",
            Imported(signal="SIGILL"),
            (
                "error import-numpy: importing `numpy` ends Python with SIGILL\n"
                "why: its wheel has instructions that this CPU does not have\n"
                "do: see `cpu` above; otherwise install it again\nexit: 1"
            ),
        ),
        (
            "onnxruntime",
            Imported(signal="SIGSEGV"),
            (
                "error import-onnxruntime: importing `onnxruntime` ends Python with SIGSEGV\n"
                f"why: its files are damaged, or for another system\n{again('onnxruntime')}\nexit: 1"
            ),
        ),
        (
            "tokenizers",
            Imported(error="ImportError: libstdc++.so.6: version `GLIBCXX_3.4.30' not found"),
            (
                "error import-tokenizers: `tokenizers` cannot be imported: ImportError: libstdc++.so.6: version "
                f"`GLIBCXX_3.4.30' not found\nwhy: every model needs it\n{again('tokenizers')}\nexit: 1"
            ),
        ),
        (
            "jinja2",
            Imported("3.1.2"),
            (
                "error import-jinja2: `jinja2` 3.1.2 is installed, and ortkit needs 3.1.6 or newer\n"
                "why: chat templates need it; older versions let a template leave its sandbox (CVE-2025-27516)\n"
                f"do: run `{PYTHON} -m pip install --no-index --find-links wheels 'jinja2>=3.1.6'`\nexit: 1"
            ),
        ),
        (
            "click",
            Imported("8.0.4"),
            (
                "error import-click: `click` 8.0.4 is installed, and ortkit needs 8.1 or newer\n"
                "why: the command line needs it\n"
                f"do: run `{PYTHON} -m pip install --no-index --find-links wheels 'click>=8.1'`\nexit: 1"
            ),
        ),
    ],
)
def test_broken_imports(module: str, imported: Imported, expected: str) -> None:
    found = list(check_imports(host(imports=dict(GOOD.imports) | {module: imported})))

    assert [text_of(one) for one in found if one.severity.value != "ok"] == [expected]


def test_the_version_may_be_that_of_the_package() -> None:
    """Modules need not state one."""
    imports = {"tokenizers": Imported(None)}

    assert [text_of(found) for found in check_imports(host(imports=imports))] == [
        "ok import-tokenizers: `tokenizers` 0.22.2 can be imported"
    ]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "ok telemetry: ortkit switches off the telemetry of its dependencies before they load"),
        ("1", "ok telemetry: telemetry is off for all programs of this environment"),
        (
            "0",
            (
                "note telemetry: ORT_DISABLE_TELEMETRY is `0`, which leaves onnxruntime's telemetry on\n"
                "why: ortkit switches it off for itself; another program that imports onnxruntime sends events to its "
                "vendor\n"
                "do: set it for all: `export ORT_DISABLE_TELEMETRY=1`"
            ),
        ),
    ],
)
def test_telemetry(value: str | None, expected: str) -> None:
    environment = {} if value is None else {"ORT_DISABLE_TELEMETRY": value}

    assert [text_of(found) for found in check_telemetry(host(environment=environment))] == [expected]


def test_imports_in_a_process_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules that end their process, raise anything, print, or never return."""
    for name, code in {
        "works_here": "print('hello'); __version__ = '1.2'",
        "ends_here": "import os, signal; os.kill(os.getpid(), signal.SIGILL)",
        "exits_here": "import os; os._exit(3)",
        "raises_here": "raise ImportError('line one\\n  line two')",
        "needs_another": "import a_module_that_is_not_there",
        "never_ends": "import time; time.sleep(60)",
    }.items():
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)

    quick = ["works_here", "ends_here", "exits_here", "raises_here", "needs_another", "not_there_at_all"]
    assert import_all(quick) == {
        "works_here": Imported("1.2"),
        "ends_here": Imported(signal="SIGILL"),
        "exits_here": Imported(error="Python ended with exit code 3"),
        "raises_here": Imported(error="ImportError: line one line two"),
        "needs_another": Imported(error="ModuleNotFoundError: No module named 'a_module_that_is_not_there'"),
        "not_there_at_all": Imported(missing=True),
    }
    assert import_all(["never_ends"], seconds=0.5) == {"never_ends": Imported(error="it did not end within 0.5 s")}


def test_packages_of_this_environment() -> None:
    found = {package.name: package for package in find_packages(["numpy", "tokenizers", "not-there"])}

    assert sorted(found) == ["numpy", "tokenizers"]
    assert found["numpy"].version == __import__("numpy").__version__
    assert found["numpy"].changed == found["tokenizers"].changed == ()


def test_a_damaged_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = tmp_path / "jinja2-3.1.6.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: Jinja2\nVersion: 3.1.6\n")
    (record / "RECORD").write_text(
        "jinja2/__init__.py,sha256=x,5\njinja2/gone.py,sha256=x,5\njinja2/other.py,sha256=x,5\n"
        "jinja2/__pycache__/a.pyc,,\njinja2-3.1.6.dist-info/RECORD,,\n"
    )
    (tmp_path / "jinja2").mkdir()
    (tmp_path / "jinja2" / "__init__.py").write_text("a = 1")
    (tmp_path / "jinja2" / "other.py").write_text("a = 1000")
    monkeypatch.setattr("sys.path", [str(tmp_path)])

    assert find_packages(["jinja2"]) == (
        Package("jinja2", "3.1.6", str(tmp_path), ("jinja2/gone.py", "jinja2/other.py")),
    )
