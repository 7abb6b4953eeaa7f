"""The Hub's commands and the catalog run where nothing but the small extra is installed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ortkit.exporters import NEEDED
from ortkit.exporters.extras import need
from ortkit import MissingPartError
from tests.hub_users import ADA, HubUser

EXPORT_ALONE = sorted({*NEEDED} - {"huggingface_hub", "yaml"})
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
    assert finished.stderr.startswith("error: the export stage is not installed here: there is no `gguf`, `onnx`, ")
    assert finished.stderr.endswith("hint: on the machine that exports, run `pip install 'ortkit[cpu,export]'`\n")


@pytest.mark.parametrize(
    ("blocked", "arguments"),
    [("yaml", ["models"]), ("huggingface_hub", ["whoami"]), ("huggingface_hub", ["login", "--token-stdin"])],
)
def test_without_the_small_extra_it_is_named(user: HubUser, blocked: str, arguments: list[str]) -> None:
    finished = run(user, [blocked], *arguments)

    assert finished.returncode == 1
    assert finished.stderr == (
        f"error: the commands for the Hub and the catalog are not installed here: there is no `{blocked}`\n\n"
        "hint: run `pip install 'ortkit[hub]'`\n"
    )


def test_what_is_there_is_not_missed() -> None:
    need("export", *NEEDED)
    with pytest.raises(MissingPartError, match="there is no `nothing_of_this_name`"):
        need("export", "nothing_of_this_name")


def test_the_small_extra_is_a_part_of_the_large_one() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8")
    lists = re.findall(r"(?ms)^(?:hub|export) = \[(.*?)\]$", text)
    hub, export = (set(re.findall('"(.*?)"', found)) for found in lists)

    assert {name.partition(">=")[0] for name in hub} == {"huggingface_hub", "PyYAML"}
    assert hub <= export
