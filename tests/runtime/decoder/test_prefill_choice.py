"""Which graph prompts go through, and that the answer does not depend on how a prompt is split."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ortkit import Bundle, BundleError, Decoder, InputError, OutOfMemoryError
from ortkit.runtime.bundle.bundle import PREFILL_GRAPH
from ortkit.runtime.bundle.manifest import PrefillChoice
from ortkit.runtime.bundle.manifest_json import manifest_from_json, manifest_to_json
from ortkit.runtime.decoder import prefill_choice
from ortkit.runtime.decoder.memory_estimate import footprint_of
from ortkit.runtime.session import cpu, memory_limit
from ortkit.runtime.session.cpu_class import CpuClass
from ortkit.runtime.session.memory import mebibytes
from ortkit.runtime.session.opening import size_to_open, size_to_open_prefill
from tests.commands import Finished
from tests.quantized_decoder import write_quantized
from tests.tiny_bundles import rehash

PROMPT = [int(number) for number in np.random.default_rng(3).integers(3, 300, 201)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_quantized(tmp_path_factory.mktemp("prefill") / "with", prefill=True)


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_quantized(tmp_path_factory.mktemp("prefill") / "without")


def answer(decoder: Decoder, **options: object) -> list[tuple[int, float]]:
    found = decoder.generate(PROMPT, max_tokens=6, top_logprobs=1, **options)  # type: ignore[arg-type]
    return [(token.id, token.logprob) for token in found.tokens]


def test_prompts_go_through_the_8_bit_graph_and_generated_tokens_through_the_other(bundle: Bundle) -> None:
    """The answer is that of the graph that decodes, on the KV cache that the 8-bit graph writes."""
    int8 = Decoder(bundle, threads=1, prefill="int8")
    both = Decoder(bundle, threads=1, prefill=PrefillChoice.NONE)
    cache, other = int8.prefill(PROMPT), both.prefill(PROMPT)
    assert int8.plan.prefill is PrefillChoice.INT8
    assert both.plan.prefill is PrefillChoice.NONE

    for number, (here, there) in enumerate(zip(cache.contents(), other.contents(), strict=True)):
        # The first layer's values have the error of one matmul.
        close = np.linalg.norm(here - there) / np.linalg.norm(there)
        assert 0 < close < (0.05 if number < 2 else 0.2)

    def decoded(decoder: Decoder) -> np.ndarray:
        return decoder.runner(decoder.new_cache()).run(PROMPT[:4], 4).copy()

    np.testing.assert_array_equal(decoded(int8), decoded(both))


def test_the_answer_does_not_depend_on_how_a_prompt_is_split(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(bundle, threads=1, prefill="int8")
    expected = answer(decoder)
    for most in (2, 34, 64):
        monkeypatch.setattr(decoder, "run_tokens", most)
        assert answer(decoder) == expected
    for cached in (1, 2, 77, 200):
        assert answer(decoder, cache=decoder.prefill(PROMPT[:cached])) == expected


@pytest.mark.parametrize("chosen", list(CpuClass))
def test_auto_depends_on_the_class_of_the_cpu(
    bundle: Bundle, chosen: CpuClass, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefill_choice, "this_cpu_class", lambda: chosen)
    taken = prefill_choice.takes_int8_prefill(bundle, PrefillChoice.AUTO)
    assert taken is cpu.int8_prefill_pays(chosen) is (chosen in {CpuClass.X86_AMX, CpuClass.X86_VNNI})


def test_a_bundle_without_the_graph_never_takes_it(without: Bundle) -> None:
    assert Decoder(without, threads=1).prefill_session is None
    with pytest.raises(InputError, match=r"`.*without` has no 8-bit graph for prompts") as raised:
        Decoder(without, prefill="int8")
    assert raised.value.exit_code == 2
    assert "export the model again with `--prefill int8`" in (raised.value.hint or "")
    with pytest.raises(InputError, match="prefill") as raised:
        Decoder(without, prefill="int4")
    assert raised.value.exit_code == 2


def test_the_command_refuses_a_bundle_without_the_graph(without: Bundle, ortkit: Callable[..., Finished]) -> None:
    done = ortkit("generate", str(without.path), "fox", "--raw", "--prefill", "int8", "--max-tokens", "2")
    assert done.code == 2
    assert "has no 8-bit graph for prompts" in done.err


def test_a_prompt_cache_of_the_other_path_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    int8, none = (Decoder(bundle, threads=1, prefill=path) for path in ("int8", "none"))
    file = tmp_path / "prompt.cache"
    int8.save_cache(file, int8.prefill(PROMPT))
    assert answer(int8, cache=int8.load_cache(file)) == answer(int8)
    with pytest.raises(InputError, match=r"was saved with the 8-bit graph for prompts of .* run without it") as raised:
        none.load_cache(file)
    assert raised.value.exit_code == 2
    assert '`prefill="int8"`' in (raised.value.hint or "")
    for made, other, how, option in ((int8, none, "with", "int8"), (none, int8, "without", "none")):
        with pytest.raises(InputError, match=rf"the cache was made {how} the 8-bit graph for prompts of .*") as raised:
            other.generate(PROMPT, cache=made.prefill(PROMPT), max_tokens=2)
        assert f'`prefill="{option}"`' in (raised.value.hint or "")


def test_closing_frees_the_graph(tmp_path: Path) -> None:
    # A bundle of its own: decoders of one share their sessions.
    decoder = Decoder(write_quantized(tmp_path / "closed", prefill=True), threads=1, prefill="int8")
    decoder.generate(PROMPT, max_tokens=2)
    sessions = [weakref.ref(decoder.session), weakref.ref(decoder.prefill_session)]
    assert all(session() is not None for session in sessions)

    decoder.close()
    gc.collect()

    assert [session() for session in sessions] == [None, None]
    with pytest.raises(InputError, match=r"the Decoder of .* is closed"):
        decoder.prefill(PROMPT)


def test_the_memory_of_the_graph_is_counted(bundle: Bundle, without: Bundle) -> None:
    size = bundle.manifest.files[PREFILL_GRAPH].size
    facts = bundle.manifest.decoder
    assert facts is not None
    found, less = footprint_of(bundle.manifest, facts), footprint_of(without.manifest, facts)
    assert (found.prefill_weights, less.prefill_weights) == (size, 0)
    assert found.weights == less.weights + size
    assert found.lengths[0].total == less.lengths[0].total + size


def test_opening_within_a_limit_says_how_to_do_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_quantized(tmp_path / "small", prefill=True)
    monkeypatch.setattr(memory_limit, "resident_memory", lambda: 0)
    limit = memory_limit.MARGIN + size_to_open(bundle) + size_to_open_prefill(bundle) - 1
    with pytest.raises(OutOfMemoryError, match="opening") as raised:
        Decoder(bundle, threads=1, prefill="int8", max_memory=limit)
    assert raised.value.exit_code == 9
    assert "`--prefill none`" in (raised.value.hint or "")


def test_inspect_shows_the_graph_and_its_memory(bundle: Bundle, ortkit: Callable[..., Finished]) -> None:
    shown = ortkit("inspect", str(bundle.path), "--runtime").out.decode()
    size = footprint_of(bundle.manifest, bundle.manifest.decoder).prefill_weights  # type: ignore[arg-type]
    assert "prefill      8-bit graph for prompts, 4 matmuls with a scale per output and per token" in shown
    assert f"of them {mebibytes(size)} of the 8-bit graph for prompts" in shown
    assert "prompts      through the " in shown


def test_a_manifest_that_describes_a_missing_graph_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    write_quantized(folder, prefill=True)
    (folder / PREFILL_GRAPH).unlink()
    rehash(folder, lambda manifest: manifest["files"].pop(PREFILL_GRAPH))
    with pytest.raises(BundleError, match=f"describes the graph `{PREFILL_GRAPH}`, which is not one of its") as raised:
        Bundle.open(folder)
    assert raised.value.exit_code == 7


def test_a_manifest_without_the_graph_is_as_before(bundle: Bundle, without: Bundle) -> None:
    """Older versions of ortkit read it."""
    assert "prefill" not in json.loads(manifest_to_json(without.manifest))
    assert manifest_from_json(manifest_to_json(bundle.manifest)) == bundle.manifest


def test_a_manifest_for_another_provider_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "cuda"
    write_quantized(folder, prefill=True)
    rehash(folder, lambda manifest: manifest.update(provider="cuda"))
    with pytest.raises(BundleError, match="it has an 8-bit graph for prompts, which only decoders for `cpu`") as raised:
        Decoder(folder)
    assert raised.value.exit_code == 7
