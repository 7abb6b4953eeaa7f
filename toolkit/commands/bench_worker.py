"""Measure one bundle on this machine, in a process of its own: speed, latency and memory."""

from __future__ import annotations

import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from ...runtime import errors
from ...runtime.child_process import python_command
from ...runtime.errors import BundleError, OrtkitError

if TYPE_CHECKING:
    from ...runtime.bundle.bundle import Bundle
    from ...runtime.decoder.decoder import Decoder
    from ...runtime.encoder.embedder import Embedder
    from ...runtime.encoder.reranker import Reranker

_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from ortkit.toolkit.commands.bench_worker import child; child()"
)
_SENTENCES = (
    "The pump does not start when it is cold.",
    "Check that the valve is open and that the filter is clean before you switch it on again.",
    "Rope shrinks when it is wet, and a knot that was tied dry is then hard to open.",
    "A compass needle points to magnetic north, which is not where the map has its north.",
    "Moss grows on any side of a tree that is damp enough.",
    "Boil river water for at least one minute, or three minutes above two thousand metres.",
    "The generator needs clean fuel, a charged battery and air that is not below its limit.",
    "Write down the reading of the meter every morning, together with the date and your name.",
)
_TEXTS = 64
_LONGEST = 12
"""Sentences of the longest text; the lengths of the others are spread evenly."""
_FEWEST_ROUNDS = 3
_PROMPT, _ANSWER = 128, 32
"""Tokens of a decoder's prompt and answer."""
_LONGEST_MESSAGE = 10_000


@dataclass(frozen=True)
class Measured:
    """What was measured."""

    kind: str
    precision: str
    provider: str
    onnxruntime: str
    speed: float
    """Of texts, pairs or generated tokens, per second."""
    unit: str
    """`texts/s`, `pairs/s` or `tokens/s`."""
    prompt_speed: float | None
    """Tokens of a prompt per second; decoders only."""
    latency: float
    """Seconds for one short text or pair alone, or until the first token of an answer."""
    memory: int
    """Peak resident memory of the process, in bytes."""
    gpu_memory: int | None
    """GPU memory that was taken meanwhile, in bytes; None without a GPU."""
    opening: float
    """Seconds until the bundle was open, without hashing it."""


def measure_apart(bundle: Bundle, *, seconds: float, max_memory: int | None) -> Measured:
    """Measure a bundle, whose hashes were checked, in a process of its own, so that its memory is its own.

    `seconds` is the time for each figure, at least. Raises the errors of opening and running it.
    """
    settings = {"path": str(bundle.path), "seconds": seconds, "max_memory": max_memory}
    command = python_command("-c", _CHILD, json.dumps(sys.path), json.dumps(settings))
    finished = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False
    )
    code = finished.returncode
    if code or not finished.stdout:
        how = signal.Signals(-code).name if -code in set(signal.Signals) else f"exit code {code}"
        raise BundleError(
            f"`{bundle.path}` ended the process that measured it ({how})",
            hint="`ortkit verify` checks it on this machine",
        )
    report = json.loads(finished.stdout)
    if "error" in report:
        kind = getattr(errors, report["error"], OrtkitError)
        raise kind(report["message"], hint=report["hint"])
    return Measured(**report)


def child() -> None:
    """The main function of the process: writes one JSON object to stdout."""
    settings = json.loads(sys.argv[2])
    out = os.dup(1)
    # Output of libraries must not mix with the report.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    try:
        report = vars(measure(settings["path"], seconds=settings["seconds"], max_memory=settings["max_memory"]))
    except OrtkitError as error:
        report = {"error": type(error).__name__, "message": error.message[:_LONGEST_MESSAGE], "hint": error.hint}
    except MemoryError:
        report = {"error": "OutOfMemoryError", "message": f"`{settings['path']}`: not enough memory", "hint": None}
    os.write(out, json.dumps(report).encode())


def measure(path: str, *, seconds: float, max_memory: int | None) -> Measured:
    """Measure a bundle in this process, once a golden text has the output that was certified.

    Raises as opening and `replay_one` do, and InputError for `max_memory` where the provider has no such limit.
    """
    from ...runtime.bundle.bundle import Bundle
    from ...runtime.decoder.decoder import Decoder
    from ...runtime.encoder.embedder import Embedder
    from ...runtime.encoder.reranker import Reranker
    from ...runtime.session.onnxruntime_import import onnxruntime_version

    bundle = Bundle.listed(path)
    classes = {"decoder": Decoder, "embedder": Embedder, "reranker": Reranker}
    free = _free_gpu_memory(bundle)
    started = time.perf_counter()
    model = classes[bundle.manifest.kind.value](bundle, max_memory=max_memory)
    opening = time.perf_counter() - started
    _check_outputs(model)
    if isinstance(model, Decoder):
        speed, prompt_speed, latency = _decoder_figures(model, seconds)
        unit = "tokens/s"
    else:
        speed, latency = _encoder_figures(model, seconds)
        prompt_speed, unit = None, "texts/s" if isinstance(model, Embedder) else "pairs/s"
    left = _free_gpu_memory(bundle)
    return Measured(
        kind=bundle.manifest.kind.value,
        precision=bundle.manifest.precision.value,
        provider=model.session.provider.value,
        onnxruntime=onnxruntime_version(),
        speed=speed,
        unit=unit,
        prompt_speed=prompt_speed,
        latency=latency,
        memory=_peak_memory(),
        gpu_memory=None if free is None or left is None else max(0, free - left),
        opening=opening,
    )


def _check_outputs(model: Embedder | Reranker | Decoder) -> None:
    """Compare the shortest golden text: the speed of wrong outputs says nothing. Raises as `replay_one` does."""
    from ...runtime.replay import replay_one

    if model.bundle.manifest.certificate is None:
        return
    try:
        replay_one(model)
    except OrtkitError as error:
        error.hint = f"`ortkit verify {shlex.quote(str(model.bundle.path))}` compares all golden outputs"
        raise


def texts() -> list[str]:
    """Texts of one to _LONGEST sentences, in an order in which short and long ones take turns."""
    made = []
    for index in range(_TEXTS):
        count = 1 + index * 5 % _LONGEST
        sentences = " ".join(_SENTENCES[(index + place) % len(_SENTENCES)] for place in range(count))
        made.append(f"Note {index + 1}: {sentences}")
    return made


def _encoder_figures(model: Embedder | Reranker, seconds: float) -> tuple[float, float]:
    """Texts per second, and seconds for one alone."""
    from ...runtime.encoder.embedder import Embedder

    many, one = texts(), _SENTENCES[0]
    if isinstance(model, Embedder):
        embedder = model
        return (
            len(many) / _median_time(lambda: embedder.embed_with_report(many), seconds),
            _median_time(lambda: embedder.embed_with_report([one]), seconds),
        )
    reranker = model
    pairs = [(one, text) for text in many]
    return (
        len(pairs) / _median_time(lambda: reranker.score_with_report(pairs), seconds),
        _median_time(lambda: reranker.score_with_report(pairs[:1]), seconds),
    )


def _decoder_figures(decoder: Decoder, seconds: float) -> tuple[float, float, float]:
    """Generated tokens per second, tokens of a prompt per second, and seconds to the first token."""
    from ...runtime.decoder.generation import Steps
    from ...runtime.decoder.token_choice import TokenChoice

    most = decoder.context // 2
    prompt = decoder.encode(_SENTENCES[0])
    for text in texts():
        if len(prompt) >= _PROMPT:
            break
        prompt += decoder.encode_exactly(text)
    ids = prompt[: min(_PROMPT, most)]
    answer = min(_ANSWER, most)
    rates = []

    def run() -> None:
        # Past any end-of-sequence token, and without prompt lookup, whose gain depends on the text.
        choice = TokenChoice(decoder.facts.vocabulary, max_tokens=answer)
        steps = Steps(decoder.runner(decoder.new_cache()), ids, choice, run_tokens=decoder.run_tokens)
        for _ in steps:
            pass
        rates.append(steps.rates)

    _median_time(run, seconds)
    measured = rates[1:]
    return (
        (answer - 1) / median(rate.new_seconds for rate in measured),
        len(ids) / median(rate.prompt_seconds for rate in measured),
        median(rate.first_token_seconds for rate in measured),
    )


def _median_time(run: Callable[[], object], seconds: float) -> float:
    """The median time of a run, of as many as take `seconds`; the first run is not counted."""
    run()
    times: list[float] = []
    while len(times) < _FEWEST_ROUNDS or sum(times) < seconds:
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return median(times)


def _peak_memory() -> int:
    """Peak resident memory of this process (getrusage(2)): in KiB on Linux, in bytes on macOS."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _free_gpu_memory(bundle: Bundle) -> int | None:
    from ...runtime.session.providers import PROVIDERS
    from ...runtime.session.session import free_memory_of_gpu

    return free_memory_of_gpu() if PROVIDERS[bundle.provider].device == "cuda" else None
