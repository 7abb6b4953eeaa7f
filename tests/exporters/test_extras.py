"""The Hub's commands and the catalog run where nothing but the small extra is installed."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import ortkit
from ortkit import MissingPartError
from ortkit.exporters import NEEDED
from ortkit.exporters.extras import install_hint, need
from tests.hub_users import ADA, HubUser

EXPORT_ALONE = sorted({*NEEDED} - {"filelock", "huggingface_hub", "yaml"})
BLOCKED = """
import sys
class NoOnnxruntime:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, NoOnnxruntime())
for name in {blocked}:
    sys.modules[name] = None
sys.argv = ["ortkit", *sys.argv[1:]]
from ortkit.__main__ import main
main()
"""


ROOT = Path(__file__).parents[2]


def pip_install(requirement: str) -> str:
    return shlex.join([sys.executable, "-m", "pip", "install", requirement])


def run(user: HubUser, blocked: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    code = BLOCKED.replace("{blocked}", repr(blocked))
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=user.environment, input=ADA, capture_output=True, text=True, check=False)


def test_the_commands_that_need_no_torch(any_user: HubUser) -> None:
    assert "torch" in EXPORT_ALONE
    for arguments, shown in (
        (["models"], "all-MiniLM-L6-v2"),
        (["login", "--token-stdin"], "signed in as ada"),
        (["whoami"], "user     ada"),
        (["access", "org/gated"], "org/gated can be downloaded with the token hf_****0001"),
        (["access", "all-MiniLM-L6-v3"], "the catalog has `all-MiniLM-L6-v2`"),
        (["logout"], "removed "),
    ):
        finished = run(any_user, EXPORT_ALONE, *arguments)
        assert shown in finished.stdout + finished.stderr, finished.stderr
    finished = run(any_user, EXPORT_ALONE, "export", "org/public")
    assert finished.returncode == 1
    assert finished.stderr.startswith("error: the export stage is not installed here: `gguf`, `onnx`, ")
    assert finished.stderr.endswith(f"hint: on the machine that exports, run `{pip_install(f'{ROOT}[cpu,export]')}`\n")


@pytest.mark.parametrize(
    ("blocked", "arguments"),
    [("yaml", ["models"]), ("huggingface_hub", ["whoami"]), ("huggingface_hub", ["login", "--token-stdin"])],
)
def test_without_the_small_extra_it_is_named(user: HubUser, blocked: str, arguments: list[str]) -> None:
    finished = run(user, [blocked], *arguments)

    assert finished.returncode == 1
    assert finished.stderr == (
        f"error: the commands for the Hub and the catalog are not installed here: `{blocked}` cannot be imported\n\n"
        f"hint: run `{pip_install(f'{ROOT}[hub]')}`\n"
    )


def test_what_is_there_is_not_missed() -> None:
    need("export", *NEEDED)
    with pytest.raises(MissingPartError, match="`nothing_of_this_name` cannot be imported"):
        need("export", "nothing_of_this_name")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which ortkit is installed from a wheel, first on the path."""
    package = tmp_path / "site-packages"
    (package / "ortkit-9.dist-info").mkdir(parents=True)
    (package / "ortkit-9.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: ortkit\nVersion: 9\n")
    monkeypatch.syspath_prepend(package)
    monkeypatch.setattr("ortkit.exporters.extras._ROOT", package / "ortkit")
    return package / "ortkit-9.dist-info"


def test_the_hint_names_the_wheel_or_folder_of_the_installation(installed: Path, tmp_path: Path) -> None:
    for name in ("my ortkit", "ortkit-9-py3-none-any.whl"):
        origin = tmp_path / name
        origin.touch()
        (installed / "direct_url.json").write_text(json.dumps({"url": origin.as_uri()}))

        assert install_hint("hub") == f"run `{pip_install(f'{origin}[hub]')}`"
        origin.unlink()
        assert install_hint("hub").startswith("install ortkit's wheel again")


def test_the_hint_never_names_a_package_of_an_index(installed: Path) -> None:
    for url in (None, "https://example.org/ortkit-9-py3-none-any.whl"):
        if url is not None:
            (installed / "direct_url.json").write_text(json.dumps({"url": url}))

        command = pip_install(f"./ortkit-{ortkit.__version__}-py3-none-any.whl[cpu,export]")
        assert install_hint("export") == (
            f"install ortkit's wheel again, with the extra `export`: `{command}` in the folder that holds it"
        )


def test_the_hint_keeps_onnxruntime_for_gpus(installed: Path) -> None:
    assert importlib.metadata.distribution("ortkit").version == "9"
    (installed.parent / "onnxruntime_gpu-1.dist-info").mkdir()
    (installed.parent / "onnxruntime_gpu-1.dist-info" / "METADATA").write_text("Name: onnxruntime-gpu\nVersion: 1\n")

    assert "[cuda,export]" in install_hint("export")


def test_the_small_extra_is_a_part_of_the_large_one() -> None:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    lists = re.findall(r"(?ms)^(?:hub|export) = \[(.*?)\]$", text)
    hub, export = (set(re.findall('"(.*?)"', found)) for found in lists)

    assert {name.partition(">=")[0] for name in hub} == {"huggingface_hub", "PyYAML"}
    assert hub <= export
