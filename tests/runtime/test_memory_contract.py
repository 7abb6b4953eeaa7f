"""`--max-memory` holds: peak memory of processes that embed and generate with real models, against their limits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.memory_limit import CHILD
from ortkit import Bundle

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is Linux's VmHWM"),
]
MEBIBYTE = 1 << 20
TOLERANCE = 2 * MEBIBYTE
"""The kernel counts pages by thread in steps, and maps libraries in pieces that differ from start to start."""
SENTENCE = "the pump does not start when it is cold and the rope shrinks when it is wet "
TEXTS = [SENTENCE[index:] * repeated for index in range(6) for repeated in (1, 3, 8, 20)]


@dataclass(frozen=True)
class Run:
    code: int
    out: bytes
    err: str
    peak: int


def run(*arguments: str, limit: int | None, stdin: bytes = b"") -> Run:
    """Run a command line in a process of its own; `limit` in MiB."""
    environment = os.environ | ({} if limit is None else {"ORTKIT_MAX_MEMORY": f"{limit}M"})
    finished = subprocess.run(
        [sys.executable, "-c", CHILD, *arguments], input=stdin, capture_output=True, check=False, env=environment
    )
    err, _, last = finished.stderr.decode().rstrip().rpartition("peak ")
    return Run(finished.returncode, finished.stdout, err, int(last))


def check_embedding(bundle: Bundle, limits: tuple[int, ...], *, refused: int) -> None:
    texts = "\n".join(json.dumps({"text": text}) for text in TEXTS).encode()
    free = run("embed", str(bundle.path), stdin=texts, limit=None)
    assert free.code == 0, free.err
    for limit in limits:
        found = run("embed", str(bundle.path), stdin=texts, limit=limit)
        assert found.code == 0, found.err
        assert found.peak <= limit * MEBIBYTE + TOLERANCE, (limit, found.peak / MEBIBYTE)
        # Bits do not depend on the limit.
        assert found.out == free.out
    tight = run("embed", str(bundle.path), stdin=texts, limit=refused)
    assert (tight.code, tight.out) == (9, b"")
    assert tight.peak <= refused * MEBIBYTE
    assert f"and `max_memory` is {refused} MiB" in tight.err


def test_an_embedder(int8_bundle: Bundle) -> None:
    check_embedding(int8_bundle, (140, 180), refused=100)


def test_an_embedder_in_fp32(fp32_bundle: Bundle) -> None:
    check_embedding(fp32_bundle, (250,), refused=150)


def test_a_decoder(smollm_bundle: Bundle) -> None:
    """A prompt that fits no more than once, in every limit; longer ones are refused with what fits."""
    name = str(smollm_bundle.path)
    prompt = SENTENCE * 10
    options = ("--raw", "--max-tokens", "16", "--temperature", "0", "--threads", "1")
    free = run("generate", name, prompt, *options, limit=None)
    assert free.code == 0, free.err
    for limit in (250, 320):
        found = run("generate", name, prompt, *options, limit=limit)
        assert found.code == 0, found.err
        assert found.peak <= limit * MEBIBYTE + TOLERANCE, (limit, found.peak / MEBIBYTE)
        assert found.out == free.out
        assert f"note: within {limit} MiB there is room for " in found.err

    tight = run("generate", name, prompt, *options, limit=150)
    assert (tight.code, tight.out) == (9, b"")
    assert f"error: opening `{name}` takes this process to about " in tight.err
    assert tight.peak <= 150 * MEBIBYTE

    long = run("generate", name, SENTENCE * 300, *options, limit=250)
    assert (long.code, long.out) == (9, b"")
    assert "error: the KV cache of " in long.err
    assert "hint: raise `max_memory` (`--max-memory " in long.err
    assert long.peak <= 250 * MEBIBYTE + TOLERANCE

    context = run("generate", name, prompt, *options, "--context", "8192", limit=250)
    assert (context.code, context.out) == (9, b"")
    assert "or take a shorter context: `--context " in context.err
