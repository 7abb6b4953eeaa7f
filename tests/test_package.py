"""The package: what is public, what is installed, and that nothing of the user's stands in its way."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import ortkit

ROOT = Path(__file__).parents[1]
FOLDERS = ("runtime", "exporters", "toolkit")


def test_the_folders_are_linked_into_the_package() -> None:
    for folder in FOLDERS:
        link = ROOT / "ortkit" / folder
        assert link.readlink() == Path("..") / folder
        assert (link / "__init__.py").samefile(ROOT / folder / "__init__.py")


def test_public_names_are_those_that_type_checkers_read() -> None:
    tree = ast.parse((ROOT / "ortkit" / "__init__.py").read_text("utf-8"))
    checked = {
        alias.asname or alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module and node.module.startswith(("runtime.", "toolkit."))
        for alias in node.names
    }

    assert set(ortkit.__all__) - {"__version__"} == set(checked) - {"__version__"}
    for name, home in checked.items():
        assert getattr(ortkit, name) is getattr(importlib.import_module(f"ortkit.{home}"), name)
    assert set(ortkit.__all__) <= set(dir(ortkit))
    with pytest.raises(AttributeError, match="module `ortkit` has no attribute `Embeder`"):
        _ = ortkit.Embeder


@pytest.mark.parametrize("package", ["ortkit", "ortkit.exporters"])
def test_what_is_public_is_there_and_sorted(package: str) -> None:
    module = importlib.import_module(package)
    modules = {path.stem for path in Path(str(module.__file__)).parent.glob("*.py")}

    for name in module.__all__:
        assert getattr(module, name) is not None
    assert not set(module.__all__) & modules, "a name would mean a module or what is in it by turns"
    with pytest.raises(AttributeError):
        module.nothing_of_this_name  # noqa: B018


def test_the_version_is_that_of_the_distribution() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", ortkit.__version__)
    finished = subprocess.run([sys.executable, "-m", "ortkit", "--version"], capture_output=True, text=True, check=True)
    assert ortkit.__version__ in finished.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel that is made of the sdist, as an index or `pip wheel` makes it."""
    folder = tmp_path_factory.mktemp("dist")
    hatch = [sys.executable, "-m", "hatchling", "build", "--directory", str(folder)]
    subprocess.run([*hatch, "--target", "sdist"], cwd=ROOT, check=True, capture_output=True)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    unpacked = folder / sdist.name.removesuffix(".tar.gz")
    subprocess.run([*hatch, "--target", "wheel"], cwd=unpacked, check=True, capture_output=True)
    (found,) = folder.glob("*.whl")
    return found


def test_the_wheel_holds_the_package_alone_and_all_of_it(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if not re.match(r"ortkit-[^/]+\.dist-info/", name)}
    code = {f"ortkit/{path.relative_to(ROOT)}" for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}

    assert {name.split("/")[0] for name in names} == {"ortkit"}
    assert names >= code | {
        f"ortkit/{name}"
        for name in (
            "__init__.py",
            "__main__.py",
            "py.typed",
            "exporters/models.yaml",
            "exporters/packaging/pylock.toml",
        )
    }
    assert names >= {
        f"ortkit/{path.relative_to(ROOT)}" for path in (ROOT / "exporters" / "certification" / "data").iterdir()
    }


def test_the_command_runs_beside_files_of_the_users_that_bear_our_folders_names(wheel: Path, tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    for name in FOLDERS:
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the user file was imported')\n")

    for arguments in (["-m", "ortkit", "models"], ["-c", "import ortkit; print(ortkit.Embedder, ortkit.__file__)"]):
        finished = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env={"PYTHONPATH": str(installed), "PATH": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        assert finished.returncode == 0, finished.stderr
    assert str(installed) in finished.stdout


def test_nothing_imports_the_folders_by_their_own_names() -> None:
    """`import runtime` works in a checkout, and gives a second copy of every class."""
    wrong = re.compile(rf"^\s*(?:from|import) (?:{'|'.join(FOLDERS)})\b", re.MULTILINE)
    places = [ROOT / name for name in (*FOLDERS, "ortkit", "tests", "benchmarks", "docs")]
    files = [path for place in places for path in (*place.rglob("*.py"), *place.glob("*.md"))]

    assert len(files) > 200
    assert not [path for path in [*files, ROOT / "README.md"] if wrong.search(path.read_text("utf-8"))]


TYPED = """
import numpy as np
from numpy.typing import NDArray

import ortkit
from ortkit import Answer, Chat, Decoder, Embedder, GenerationOptions, Message, Ranked, Reranker, Stream

vectors: NDArray[np.float32] = Embedder("x").embed(["a"], dim=128, dtype="float16")
best: list[Ranked[str]] = Reranker("x").rank("query", (text for text in ["a", "b"]), top_n=1)
records: list[Ranked[dict[str, str]]] = Reranker("x").rank("q", [{"body": "a"}], text=lambda record: record["body"])
decoder = Decoder("x", threads=2)
options: GenerationOptions = {"temperature": 0.7, "seed": 1}
answer: Answer = decoder.chat([{"role": "user", "content": "Hello"}], **options)
stream: Stream = Chat(decoder, messages=[Message("user", "Hello")]).send("And?", stop=["\\n"])
text: str = "".join(token.text for token in stream)
model = ortkit.load("x")
if isinstance(model, Embedder):
    vectors = model.embed("a")
"""
MISTYPED = {
    'decoder.generate("a", temprature=0.7)': "call-arg",
    'decoder.generate("a", temperature="warm")': "arg-type",
    "Embedder(3)": "arg-type",
    'Embedder("x").embed([1])': "list-item",
    'ortkit.load("x").embed("a")': "union-attr",
}


@pytest.mark.slow
def test_the_installed_package_is_typed_for_its_users(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--system-site-packages", environment], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    (tmp_path / "typed.py").write_text(TYPED)
    (tmp_path / "mistyped.py").write_text("\n".join(["import ortkit", TYPED, *MISTYPED]))

    def checked(name: str) -> list[str]:
        command = [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--python-executable",
            environment / "bin" / "python",
            name,
        ]
        finished = subprocess.run(
            [*command, "--no-error-summary"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert not finished.stderr
        return finished.stdout.splitlines()

    assert checked("typed.py") == []
    # A line can have several errors of one kind, each with notes: `load` returns one of three classes.
    errors = re.findall(
        r"^mistyped\.py:(\d+): error: .* \[([\w-]+)\]$", "\n".join(checked("mistyped.py")), re.MULTILINE
    )
    assert list(dict.fromkeys(errors)) == [
        (str(line), code) for line, code in enumerate(MISTYPED.values(), TYPED.count("\n") + 3)
    ]
