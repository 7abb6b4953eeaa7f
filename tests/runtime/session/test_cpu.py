from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import onnx
import onnxruntime
import pytest

from ortkit import Bundle, Decoder, Embedder, Provider
from ortkit.runtime.bundle.manifest import WeightBlocks
from ortkit.runtime.session.config import SessionConfig
from ortkit.runtime.session.cpu import WITHOUT_KLEIDIAI, Int8Arithmetic, int8_arithmetic
from ortkit.runtime.session.cpu_class import CpuClass, class_of, cpu_features, this_cpu_class
from ortkit.runtime.session.int8_overflow import _OVERFLOW_PROBE, LARGEST, PRECISION_MODE
from ortkit.runtime.session.int8_overflow import matmuls_overflow as asked
from ortkit.runtime.session.session import Session
from tests.commands import Finished


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool], None]]:
    """Have onnxruntime's answer be this one, whatever the CPU has."""

    def give(overflows: bool) -> None:  # noqa: FBT001
        monkeypatch.setattr("ortkit.runtime.session.cpu.matmuls_overflow", lambda _: overflows)

    return give


def onnxruntime_that_gives(result: object) -> Any:
    """An onnxruntime whose product is `result`, or that raises it."""

    def run(_: object, feeds: dict[str, np.ndarray]) -> list[object]:
        assert feeds["a"].dtype == np.uint8
        if isinstance(result, Exception):
            raise result
        return [result]

    def session(model: bytes, options: Any, providers: list[str]) -> object:
        assert (model, providers) == (_OVERFLOW_PROBE, ["CPUExecutionProvider"])
        assert options.get_session_config_entry(PRECISION_MODE) == "0"
        return SimpleNamespace(run=run)

    # A class, since modules are hashable and namespaces are not.
    members = {"SessionOptions": onnxruntime.SessionOptions, "InferenceSession": staticmethod(session)}
    return type("onnxruntime", (), members)


@pytest.mark.parametrize(
    ("result", "overflows"),
    [
        (np.full((2, 16), LARGEST, np.int32), False),
        # What qemu's Haswell gives: two pairs of products that saturate in 16 bits.
        (np.full((2, 16), 2 * 32767, np.int32), True),
        (np.array([[LARGEST] * 16, [LARGEST] * 15 + [65534]], np.int32), True),
        (RuntimeError("cannot run it"), True),
    ],
)
def test_each_answer_of_onnxruntime(result: object, overflows: bool) -> None:  # noqa: FBT001
    assert asked(onnxruntime_that_gives(result)) is overflows


def test_it_is_asked_once() -> None:
    asked.cache_clear()
    for _ in range(3):
        int8_arithmetic(onnxruntime)
    assert asked.cache_info().misses == 1


def test_the_graph_is_a_valid_one_that_multiplies_by_the_largest_weights() -> None:
    model = onnx.load_from_string(_OVERFLOW_PROBE)
    onnx.checker.check_model(model, full_check=True)
    assert (onnx.numpy_helper.to_array(model.graph.initializer[0]) == 127).all()
    assert onnxruntime.InferenceSession(_OVERFLOW_PROBE, providers=["CPUExecutionProvider"]).run(
        None, {"a": np.zeros((2, 4), np.uint8)}
    )[0].shape == (2, 16)


def test_this_cpu() -> None:
    """The class follows from what the system reports, the probe from what the kernels do: here they must agree."""
    overflows = int8_arithmetic(onnxruntime).precision_mode

    assert overflows is (this_cpu_class() is CpuClass.X86_AVX2)


def options_given(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The options that reach onnxruntime when graphs are opened from now on."""
    given: list[Any] = []
    open_session = onnxruntime.InferenceSession

    def recorded(model: object, options: Any, **others: object) -> object:
        given.append(options)
        return open_session(model, options, **others)

    monkeypatch.setattr("onnxruntime.InferenceSession", recorded)
    return given


def opened_with(path: Path, monkeypatch: pytest.MonkeyPatch, *, int8: bool) -> Any:
    given = options_given(monkeypatch)
    Session(path, SessionConfig(Provider.CPU, ("input_ids",), int8=int8))
    return given[-1]


def entry(options: Any, name: str = PRECISION_MODE) -> str | None:
    try:
        return str(options.get_session_config_entry(name))
    # What onnxruntime raises for an entry that was not set.
    except RuntimeError:
        return None


@pytest.mark.parametrize(
    ("int8", "overflows", "expected"), [(True, True, "1"), (True, False, None), (False, True, None)]
)
def test_the_mode_reaches_onnxruntime_only_where_it_is_needed(
    tiny_bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    answer: Callable[[bool], None],
    int8: bool,  # noqa: FBT001
    overflows: bool,  # noqa: FBT001
    expected: str | None,
) -> None:
    answer(overflows)

    options = opened_with(tiny_bundle.file("model.onnx"), monkeypatch, int8=int8)

    assert entry(options) == expected


def test_bundles_without_int8_matmuls_do_not_ask(
    tiny_bundle: Bundle, written: tuple[Bundle, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(_: object) -> Int8Arithmetic:
        raise AssertionError

    monkeypatch.setattr("ortkit.runtime.session.session.int8_arithmetic", never)
    assert Embedder(tiny_bundle).plan.int8 is None
    assert Decoder(written[0], threads=1).session.int8 is None


@pytest.mark.parametrize("symmetric", [True, False])
def test_kleidiai_is_left_out_for_symmetric_blocks_alone(
    written: tuple[Bundle, object],
    monkeypatch: pytest.MonkeyPatch,
    symmetric: bool,  # noqa: FBT001
) -> None:
    bundle = written[0]
    blocks = WeightBlocks(1, 0, 4, 4, 32, 32, symmetric, "nearest")
    given = options_given(monkeypatch)
    monkeypatch.setattr("ortkit.runtime.session.open_sessions._OPEN", WeakValueDictionary())

    Decoder(Bundle(bundle.path, dataclasses.replace(bundle.manifest, blocks=blocks)), threads=1)

    assert entry(given[-1], WITHOUT_KLEIDIAI) == ("1" if symmetric else None)


@pytest.mark.parametrize("overflows", [True, False])
def test_the_decision_is_shown(
    ortkit: Callable[..., Finished],
    reranker_bundle: Bundle,
    answer: Callable[[bool], None],
    overflows: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer(overflows)
    # Other tests may hold a session of this bundle, opened with the other answer.
    monkeypatch.setattr("ortkit.runtime.session.open_sessions._OPEN", WeakValueDictionary())

    shown = ortkit("inspect", reranker_bundle.path, "--runtime").out.decode()
    plan = json.loads(ortkit("inspect", reranker_bundle.path, "--runtime", "--json").out)["runtime"]

    expected = (
        "int8 matmuls overflow in onnxruntime's faster mode on this CPU, so its precision mode is on"
        if overflows
        else "int8 matmuls are exact on this CPU, so onnxruntime's slower precision mode is off"
    )
    assert f"int8         {expected}" in shown
    assert plan["int8"] == {"precision_mode": overflows, "features": list(cpu_features())}


def test_features_as_linux_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("processor : 0\nflags\t\t: fpu avx2 avx512f avx512_vnni amx_int8\n\nflags : fpu\n")
    assert cpu_features(path) == ("avx2", "avx512f", "avx512_vnni", "amx_int8")
    path.write_text("Features\t: fp asimd asimddp i8mm\n")
    assert cpu_features(path) == ("asimddp", "i8mm")
    assert cpu_features(tmp_path / "none") == ()


@pytest.mark.parametrize(
    ("flags", "machine", "expected"),
    [
        # Sapphire Rapids, Zen 4, Alder Lake (no AVX-512).
        ("avx2 avx512f avx512_vnni amx_int8", "x86_64", CpuClass.X86_AMX),
        ("avx2 avx512f avx512_vnni", "x86_64", CpuClass.X86_VNNI),
        ("avx2 avx_vnni", "AMD64", CpuClass.X86_VNNI),
        # Skylake-X has AVX-512 without VNNI: its 8-bit matmuls overflow as with AVX2.
        ("avx2 avx512f", "x86_64", CpuClass.X86_AVX2),
        ("avx2", "x86_64", CpuClass.X86_AVX2),
        ("avx sse4_2", "x86_64", CpuClass.X86),
        ("fp asimd asimddp", "aarch64", CpuClass.AARCH64_DOTPROD),
        ("fp asimd asimddp i8mm sve", "arm64", CpuClass.AARCH64_DOTPROD),
        ("fp asimd", "aarch64", CpuClass.AARCH64),
        ("", "aarch64", CpuClass.AARCH64),
        ("rv64imafdc", "riscv64", CpuClass.OTHER),
        ("avx2", "i686", CpuClass.OTHER),
    ],
)
def test_the_class_of_a_cpu(flags: str, machine: str, expected: CpuClass) -> None:
    assert class_of(frozenset(flags.split()), machine, "Linux") is expected


@pytest.mark.parametrize(
    ("system", "machine", "expected"),
    [
        ("Darwin", "arm64", CpuClass.AARCH64_DOTPROD),
        ("Darwin", "x86_64", CpuClass.OTHER),
        ("Linux", "x86_64", CpuClass.OTHER),
    ],
)
def test_the_class_where_the_system_does_not_say(system: str, machine: str, expected: CpuClass) -> None:
    assert class_of(None, machine, system) is expected


def test_classes_are_named_as_folders_and_in_words() -> None:
    names = [one.value for one in CpuClass]

    assert names == ["x86-amx", "x86-vnni", "x86-avx2", "x86", "aarch64-dotprod", "aarch64", "other"]
    assert len({one.description for one in CpuClass}) == len(names)
    few_bits = [one.value for one in CpuClass if one.has_few_bit_kernels]
    assert few_bits == ["x86-amx", "x86-vnni", "x86-avx2", "aarch64-dotprod"]
