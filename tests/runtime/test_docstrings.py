"""The examples in the docstrings of the public API, run on small bundles."""

from __future__ import annotations

import doctest
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ortkit
from ortkit import Chat, Decoder, Embedder, Reranker
from tests import tiny_bundles
from tests.decoders import write_decoder

UNSHOWN = """
    close dimension max_length plan new_cache encode encode_exactly check_chat_template save_cache load_cache messages
    send regenerate edit reset save load count_tokens token_choice prompt_ids next_batch run_batch batch_key chat_prompt
    runner
"""
"""Methods and properties without an example: their names and types, or the example of their class, show their use."""


def examples() -> Iterator[doctest.DocTest]:
    for name in ortkit.__all__:
        public = getattr(ortkit, name)
        if inspect.isclass(public) or inspect.isfunction(public):
            module = importlib.import_module(public.__module__)
            found = doctest.DocTestFinder().find(public, name, module=module, globs={})
            yield from (test for test in found if test.examples)


EXAMPLES = {test.name: test for test in examples()}


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the examples may use."""
    folder = tmp_path_factory.mktemp("examples")
    with pytest.MonkeyPatch.context() as patch:
        # As wide as all-MiniLM-L6-v2.
        patch.setattr(tiny_bundles, "WIDTH", 384)
        embedder = tiny_bundles.write_embedder(folder / "embedder")
        reranker = tiny_bundles.write_reranker(folder / "reranker")
    return {name: getattr(ortkit, name) for name in ortkit.__all__} | {
        "np": np,
        "embedder_bundle": embedder.path,
        "embedder": Embedder(embedder, workers=1),
        "reranker": Reranker(reranker, workers=1),
        "decoder": Decoder(write_decoder(folder / "decoder")[0], threads=1),
    }


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_in_docstrings(
    name: str, names: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The folder of the index's example.
    (tmp_path / "manuals").mkdir()
    (tmp_path / "manuals" / "pump.md").write_text("# Pump\n\nThe pump does not start:\nlook at the fuse F-17.\n")
    monkeypatch.chdir(tmp_path)
    shown: list[str] = []
    test = EXAMPLES[name]
    test.globs = dict(names)

    failed, tried = doctest.DocTestRunner().run(test, out=shown.append)

    assert (failed, tried) == (0, len(test.examples)), "".join(shown)


@pytest.mark.parametrize("kind", [Embedder, Reranker, Decoder, Chat])
def test_every_method_of_a_model_has_an_example(kind: type) -> None:
    methods = {name for name, value in inspect.getmembers(kind) if not name.startswith("_") and value.__doc__}

    assert {name for name in methods.difference(UNSHOWN.split()) if f"{kind.__name__}.{name}" not in EXAMPLES} == set()


def members(public: type) -> Iterator[tuple[str, Any]]:
    """Functions and properties that a public class defines itself."""
    for name, value in vars(public).items():
        function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if not name.startswith("_") and inspect.isfunction(function):
            yield name, function


def test_everything_public_has_a_docstring() -> None:
    classes = [getattr(ortkit, name) for name in ortkit.__all__ if inspect.isclass(getattr(ortkit, name))]
    found = {f"{one.__name__}.{name}": function.__doc__ for one in classes for name, function in members(one)}
    # A dataclass without a docstring gets its signature as one.
    found |= {
        one.__name__: "" if (one.__doc__ or "").startswith(f"{one.__name__}(") else one.__doc__ for one in classes
    }

    assert len(found) > 100
    assert [name for name, text in found.items() if not text] == []


def test_public_functions_have_an_example() -> None:
    functions = {name for name in ortkit.__all__ if inspect.isfunction(getattr(ortkit, name))}

    assert functions == {"load", "similarity", "quantize_embeddings", "embedding_ranges"}
    assert functions <= EXAMPLES.keys()
