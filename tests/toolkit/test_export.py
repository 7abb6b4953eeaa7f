from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ortkit import Bundle
from tests.commands import Finished, lines_on_terminal, on_terminal

Ortkit = Callable[..., Finished]


def test_an_export_shows_its_stages_and_a_summary(
    ortkit: Ortkit, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORTKIT_BUNDLES", str(tmp_path / "models"))
    out = tmp_path / "models" / "tiny-bert-int8"

    finished = ortkit("export", tiny_checkpoint)

    assert finished.code == 0
    assert finished.out == f"{out}\n".encode()
    certificate = Bundle.open(out).manifest.certificate
    assert certificate is not None
    lines = finished.err.splitlines()
    stages = [line.split(" s ", 1)[1] for line in lines if " s " in line[:10]]
    assert stages[0] == "find the checkpoint"
    assert stages[1] == "import torch, transformers and Optimum"
    assert stages[-1] == "write the bundle"
    assert len(stages) == 8
    assert "tiny-bert, int8" in lines
    assert any(line.startswith("  size     6.0 MB of weights -> ") for line in lines)
    mean, least = certificate.figures["cosine_mean"], certificate.figures["cosine_min"]
    count = certificate.probe_size
    assert f"  cosine   {mean:.5f} mean, {least:.5f} min to PyTorch, on {count} texts" in lines
    assert any(line.startswith("  against  sentence-transformers 5.") for line in lines)
    assert f'  next     ortkit embed {out} "some text"' in lines


def test_refused_exports_have_their_own_exit_codes(ortkit: Ortkit, tmp_path: Path) -> None:
    for arguments, code, message in [
        ([tmp_path], 7, "is not a checkpoint: it has no `config.json`"),
        (["./nothing"], 5, "error: there is no folder `./nothing`"),
        (["nothing"], 5, "error: `nothing` is not a folder, a catalog name or a Hub id"),
        (["mistral-7b-instruct-v0.1"], 6, "error: offline mode is switched on by `HF_HUB_OFFLINE`"),
        (["nothing.gguf"], 5, "error: there is no file `nothing.gguf`"),
        (["SmolLM2-135M-Instruct", "--provider", "coreml"], 2, "decoders are not exported for `coreml`: CoreML has no"),
        (
            ["all-MiniLM-L6-v2", "--provider", "coreml", "--precision", "int8"],
            2,
            "embedders are not exported to `int8` for `coreml`: CoreML has no kernels",
        ),
        (
            ["all-MiniLM-L6-v2", "--from", "wheel", "--precision", "int4"],
            2,
            "error: embedders are not exported to `int4`",
        ),
        (["jina-embeddings-v2-base-en", "--from", "wheel"], 2, "comes in no wheel"),
    ]:
        finished = ortkit("export", *arguments, "--offline")
        assert finished.code == code, finished.err
        assert message in finished.err
        assert finished.out == b""


def test_an_error_on_a_terminal_begins_on_its_own_line() -> None:
    """Below the stage that is shown."""
    shown = on_terminal([sys.executable, "-m", "ortkit", "export", "./nothing"], code=5)

    assert lines_on_terminal(shown)[:2] == ["  ...     find the checkpoint", "error: there is no folder `./nothing`"]


@pytest.mark.slow
def test_ctrl_c_while_torch_is_imported(tiny_checkpoint: Path, tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "ortkit", "export", str(tiny_checkpoint), "--out", str(tmp_path / "out")]
    shown = on_terminal(arguments, code=130, interrupt_at="import torch, transformers and Optimum, ")

    assert lines_on_terminal(shown)[-2:] == ["interrupted", ""]
    assert [path.name for path in tmp_path.iterdir()] == ["tiny-bert"]
