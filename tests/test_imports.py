"""What is loaded when: an appliance has no torch, and `--help` waits for nothing. `lint-imports` checks the layers."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from ortkit import Bundle

HEAVY = {"torch", "transformers", "optimum", "onnx", "onnx_ir", "onnxscript", "huggingface_hub", "yaml", "safetensors"}

EMBED_AND_LIST = """
import json, sys
from ortkit import Embedder
vectors = Embedder({bundle!r}).embed(["hello"])
assert vectors.shape == (1, 384)
print(json.dumps(sorted(sys.modules)))
"""


def loaded_by(code: str, *, whole: bool = False) -> set[str]:
    """The modules that are loaded after this code, which prints them as JSON; top-level names alone unless `whole`."""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    names = json.loads(finished.stdout)
    return set(names) if whole else {name.split(".")[0] for name in names}


def test_an_appliance_loads_nothing_heavy(int8_bundle: Bundle) -> None:
    code = EMBED_AND_LIST.format(bundle=str(int8_bundle.path))
    loaded = loaded_by(code, whole=True)

    top = {name.split(".")[0] for name in loaded}
    assert not top & (HEAVY | {"click", "requests", "httpx", "scipy", "sklearn"})
    assert top >= {"ortkit", "onnxruntime", "tokenizers", "numpy"}
    assert not [name for name in loaded if name.startswith(("ortkit.exporters", "ortkit.toolkit"))]


def test_the_runtime_runs_where_the_heavy_things_cannot_be_imported(int8_bundle: Bundle) -> None:
    block = f"import sys\nfor name in {sorted(HEAVY)}: sys.modules[name] = None\n"

    assert "ortkit" in loaded_by(block + EMBED_AND_LIST.format(bundle=str(int8_bundle.path)))


def test_a_decoder_waits_for_nothing_that_embeds() -> None:
    loaded = loaded_by("import json, sys; from ortkit import Decoder; print(json.dumps([*sys.modules]))", whole=True)

    assert "ortkit.runtime.decoder.decoder" in loaded
    assert not loaded & {
        "ortkit.runtime.encoder.embedder",
        "ortkit.runtime.encoder.reranker",
        "ortkit.runtime.bundle.writer",
        "concurrent.futures",
        "jinja2",
    }


@pytest.mark.parametrize("module", ["ortkit", "ortkit.toolkit.cli"])
def test_help_needs_neither_numpy_nor_onnxruntime(module: str) -> None:
    loaded = loaded_by(f"import json, sys; import {module}; print(json.dumps([*sys.modules]))", whole=True)

    assert not {name.split(".")[0] for name in loaded} & (HEAVY | {"onnxruntime", "numpy", "tokenizers"})
    assert not [name for name in loaded if name.startswith("ortkit.exporters.")]


MISS_AND_LIST = """
import json, sys
from ortkit import NotFoundError
from ortkit.exporters import export
try:
    export("nothing")
except NotFoundError:
    print(json.dumps([*sys.modules]))
"""


def test_nobody_waits_for_torch_to_hear_of_a_wrong_name() -> None:
    assert not loaded_by(MISS_AND_LIST) & {"torch", "transformers", "optimum", "onnx", "onnxruntime"}
