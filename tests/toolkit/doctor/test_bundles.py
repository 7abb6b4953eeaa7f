# ruff: noqa: E501 - texts as they are printed
"""Findings on bundles: made-up states for the texts, and tiny bundles that are really opened and replayed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ortkit import Bundle, Precision, Provider
from ortkit.runtime.errors import BundleError, NotFoundError, ProviderError
from ortkit.runtime.replay import Replay
from ortkit.runtime.session.machine import Verdict
from ortkit.runtime.session.memory import Limit
from ortkit.toolkit.doctor.bundles import BundleState, Needs, check_bundle, look_at_bundle
from ortkit.toolkit.doctor.host import Host
from ortkit.toolkit.doctor.packages import Imported
from ortkit.toolkit.doctor.trust import Trust
from tests.tiny_bundles import write_embedder
from tests.toolkit.doctor.hosts import GOOD, NOW, OLD_X86, host, text_of

RUNS = Verdict(("onnxruntime",), None)
REPLAYED = Replay(3, "cosine similarity 1.0000 min", same_bits=True)
NEEDS = Needs(200 << 20, ((1024, 300 << 20), (4096, 500 << 20)))
SYSTEM = "the system, as MemAvailable"


@pytest.fixture
def embedder(tmp_path: Path) -> Bundle:
    return write_embedder(tmp_path / "embedder")


@pytest.fixture
def state(decoder_bundle: Bundle) -> BundleState:
    """An int4 decoder on which nothing is wrong."""
    return BundleState(
        Path("bundles/b"),
        manifest=replace(decoder_bundle.manifest, precision=Precision.INT4, provider=Provider.CPU),
        digest="ab" * 32,
        size=1000,
        written=NOW,
        tried=True,
        verdict=RUNS,
        needs=NEEDS,
        replay=REPLAYED,
    )


def findings(state: BundleState, machine: Host = GOOD) -> list[str]:
    found = list(check_bundle(machine, Trust(), state))
    assert {one.bundle for one in found} == {str(state.path)}
    return [text_of(one) for one in found]


def finding(state: BundleState, check: str, machine: Host = GOOD) -> str:
    (found,) = [one for one in findings(state, machine) if one.split()[1] == f"{check}:"]
    return found


def test_a_bundle_on_which_nothing_is_wrong(state: BundleState) -> None:
    assert findings(state) == [
        f"ok bundle-files: decoder, int4, for cpu: {len(state.manifest.files)} files match the manifest's sha256",
        "ok bundle-signature: not signed; the policy requires no signature",
        "ok bundle-provider: nothing is in the way of running it with `cpu`",
        "ok bundle-kernels: this CPU has kernels for int4 (AVX2)",
        (
            "ok bundle-memory: takes about 500 MiB for 4096 tokens with its process; 2,048 MiB are left by the system, as "
            "MemAvailable"
        ),
        (
            "ok bundle-certificate: 3 golden outputs: cosine similarity 1.0000 min; bits identical to the exporting "
            "machine's"
        ),
    ]


def test_a_bundle_that_cannot_be_opened(state: BundleState) -> None:
    broken = replace(state, problem=BundleError("`model.onnx` was changed"))
    missing = replace(state, problem=NotFoundError("there is no bundle at `b`", hint="create one"))

    assert findings(broken) == [
        (
            "error bundle-files: `model.onnx` was changed\nwhy: it cannot be used\n"
            "do: copy the bundle again from the machine that made it\nexit: 7"
        )
    ]
    assert findings(missing) == [
        "error bundle-files: there is no bundle at `b`\nwhy: it cannot be used\ndo: create one\nexit: 5"
    ]


def test_a_bundle_that_others_can_change(state: BundleState) -> None:
    assert finding(replace(state, open_to_others=True), "bundle-files") == (
        "warning bundle-files: other users can change the bundle `bundles/b`\n"
        "why: a graph is a program, which runs with your rights\n"
        "do: let its owner alone write to it: `chmod -R go-w bundles/b`"
    )


def test_a_bundle_from_the_future(state: BundleState) -> None:
    assert finding(replace(state, written=NOW + 3 * 86_400), "bundle-clock") == (
        "warning bundle-clock: the bundle was written on 2027-01-18, after this machine's clock\n"
        "why: the clock is wrong, or was wrong when the bundle was copied\n"
        "do: set the clock: `sudo date -s '2027-01-31 12:00'`"
    )


def test_a_bundle_that_cannot_be_tried(state: BundleState) -> None:
    broken = host(imports=dict(GOOD.imports) | {"numpy": Imported(missing=True)})

    assert finding(replace(state, tried=False), "bundle-provider", broken) == (
        "note bundle-provider: the bundle was not tried\nwhy: it needs `numpy`\ndo: mend the errors above first"
    )


def test_a_provider_that_is_not_there(state: BundleState) -> None:
    verdict = Verdict(("a GPU",), ProviderError("`cuda` is not available", hint="run `pip install onnxruntime-gpu`"))

    found = findings(replace(state, verdict=verdict, replay=None))
    assert (
        "error bundle-provider: `cuda` is not available\nwhy: the bundle cannot run here\n"
        "do: run `pip install onnxruntime-gpu`\nexit: 8"
    ) in found
    assert not [one for one in found if "bundle-certificate" in one]


@pytest.mark.parametrize(
    ("precision", "flags", "expected"),
    [
        (
            Precision.INT4,
            OLD_X86,
            (
                "warning bundle-kernels: the bundle's int4 matmuls have no kernel for this CPU, which has no AVX2\n"
                "why: weights are unpacked and multiplied in float32: exact, and several times slower\n"
                "do: use a smaller model, or a CPU with it; `ortkit bench` measures"
            ),
        ),
        (
            Precision.SOURCE,
            frozenset({"asimd"}),
            (
                "warning bundle-kernels: the bundle's source matmuls have no kernel for this CPU, which has no dot product "
                "(asimddp)\n"
                "why: weights are unpacked and multiplied in float32: exact, and several times slower\n"
                "do: use a smaller model, or a CPU with it; `ortkit bench` measures"
            ),
        ),
        (
            Precision.INT8,
            frozenset({"asimd", "asimddp"}),
            "ok bundle-kernels: this CPU has kernels for int8 (dot product (asimddp))",
        ),
    ],
)
def test_kernels(state: BundleState, precision: Precision, flags: frozenset[str], expected: str) -> None:
    manifest = replace(state.manifest, precision=precision)
    of_machine = host(cpu_flags=flags, machine="aarch64" if "asimd" in flags else "x86_64")

    assert finding(replace(state, manifest=manifest), "bundle-kernels", of_machine) == expected


def test_kernels_of_an_encoder(state: BundleState, embedder: Bundle) -> None:
    manifest = replace(embedder.manifest, precision=Precision.INT8)
    slow = host(cpu_flags=OLD_X86)

    assert finding(replace(state, manifest=manifest), "bundle-kernels", slow) == (
        "note bundle-kernels: this CPU has no AVX2\n"
        "why: int8 is slower here than the docs say, and may be no faster than fp32\n"
        "do: measure both: `ortkit bench BUNDLE...`"
    )


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        (
            100,
            (
                "error bundle-memory: the bundle takes about 200 MiB with its process, and 100 MiB are left by the system, "
                "as MemAvailable\n"
                "why: the system kills a process that takes more than there is\n"
                "do: end other programs, raise the limit, or take a bundle of fewer bits\nexit: 9"
            ),
        ),
        (
            250,
            (
                "warning bundle-memory: a context of 4096 tokens takes about 500 MiB, and 250 MiB are left by the system, "
                "as MemAvailable: less than 1024 tokens fit\n"
                "why: a longer prompt or answer is refused (exit code 9)\n"
                "do: limit the context: `--context 512`; or free memory"
            ),
        ),
        (
            400,
            (
                "warning bundle-memory: a context of 4096 tokens takes about 500 MiB, and 400 MiB are left by the system, "
                "as MemAvailable: 1024 tokens fit\n"
                "why: a longer prompt or answer is refused (exit code 9)\n"
                "do: limit the context: `--context 1024`; or free memory"
            ),
        ),
    ],
)
def test_memory(state: BundleState, left: int, expected: str) -> None:
    assert finding(state, "bundle-memory", host(memory=(Limit(left << 20, SYSTEM),))) == expected


def test_a_certificate_that_does_not_hold(state: BundleState) -> None:
    wrong = replace(state, replay=None, replay_problem=BundleError("the cosine is 0.5", hint="export it again"))

    assert finding(wrong, "bundle-certificate") == (
        "error bundle-certificate: the cosine is 0.5\n"
        "why: on this machine the bundle does not give what was certified\ndo: export it again\nexit: 7"
    )


def test_a_quick_look(state: BundleState) -> None:
    assert finding(replace(state, replay=None), "bundle-certificate") == (
        "note bundle-certificate: the certificate was not replayed (`--quick`)\n"
        "why: a machine may compute something else than was certified\ndo: run `ortkit verify bundles/b`"
    )


def look(path: Path, machine: Host = GOOD, **options: Any) -> BundleState:
    return look_at_bundle(str(path), machine, Trust(), **({"quick": False} | options))


def test_a_real_bundle(embedder: Bundle) -> None:
    found = look(embedder.path)

    assert found.problem is None
    assert found.digest == embedder.digest
    assert found.verdict is not None
    assert found.verdict.error is None
    assert found.needs is not None
    assert found.replay is not None
    assert found.replay.count == 3


def test_a_real_bundle_of_a_decoder(decoder_bundle: Bundle) -> None:
    found = look(decoder_bundle.path, quick=True)

    assert found.replay is None
    assert found.needs is not None
    assert [tokens for tokens, _ in found.needs.lengths] == [decoder_bundle.manifest.decoder.context_length]


def test_real_bundles_that_are_broken(embedder: Bundle, tmp_path: Path) -> None:
    graph = embedder.path / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\0")

    changed = look(embedder.path).problem
    assert isinstance(changed, BundleError)
    assert changed.message.startswith("`model.onnx` in the bundle")
    assert isinstance(look(tmp_path / "none").problem, NotFoundError)


def test_a_bundle_is_opened_without_libraries(embedder: Bundle) -> None:
    """Its files are checked all the same."""
    found = look(embedder.path, host(imports={}))

    assert found.problem is None
    assert (found.tried, found.verdict, found.replay) == (False, None, None)


def test_who_can_change_a_bundle(embedder: Bundle) -> None:
    embedder.path.chmod(0o755)
    assert not look(embedder.path, quick=True).open_to_others
    embedder.path.chmod(0o775)
    assert look(embedder.path, quick=True).open_to_others
