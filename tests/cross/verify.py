"""Replays a bundle's certificate in this process: `ortkit verify` starts another, which an emulator would not run.

Of an LLM it first compares whole distributions with those of float32 matmuls (`tests.cross.exact`): with KleidiAI's
kernels, whose scales of activations are by row, the divergence is six times that of sound ones.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from ortkit import Decoder, OrtkitError
from ortkit.runtime.bundle.bundle import Bundle
from ortkit.runtime.errors import BundleError
from ortkit.runtime.replay import replay
from ortkit.runtime.verify import model_of
from tests.cross.exact import leave_out_entry, log_probabilities

MOST_DIVERGENCE = 0.015
"""Mean KL divergence from float32 matmuls, in nats: up to 0.005 where activations are rounded by block, 0.026 where
they are by row (SmolLM2 with the blocks of its GGUF file, Cortex-A76)."""


def shortened(bundle: Bundle, tokens: int) -> Bundle:
    """The bundle, certified for the first so many tokens of each golden answer."""
    certificate = bundle.manifest.certificate
    assert certificate is not None
    answers = tuple(
        replace(answer, output=answer.output[:tokens], logprobs=answer.logprobs[:tokens])
        for answer in certificate.answers
    )
    return replace(bundle, manifest=replace(bundle.manifest, certificate=replace(certificate, answers=answers)))


def check_divergence(decoder: Decoder, exact: Path) -> str:
    """How far this processor's kernels are from float32 matmuls; raises BundleError where that is too far."""
    expected = np.load(exact).astype(np.float64)
    found = log_probabilities(decoder)
    divergence = float((np.exp(expected) * (expected - found)).sum(axis=1).mean())
    # Written so that NaN fails too.
    if not divergence <= MOST_DIVERGENCE:
        raise BundleError(f"KL divergence {divergence:.4f} from float32 matmuls, and {MOST_DIVERGENCE} is the most")
    return f", KL divergence {divergence:.6f} from float32 matmuls"


def main(argv: list[str]) -> int:
    """The exit code: 0, or 7 where the bundle computes something else here than it should."""
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--tokens", type=int, help="of each golden answer; all by default")
    parser.add_argument("--exact", type=Path, help="what float32 matmuls give, for LLMs")
    parser.add_argument("--without", metavar="ENTRY", help="a session entry that onnxruntime is not to get")
    options = parser.parse_args(argv)
    if options.without is not None:
        leave_out_entry(options.without)
    try:
        bundle = Bundle.open(options.bundle)
        model = model_of(bundle if options.tokens is None else shortened(bundle, options.tokens))
        # The more telling of the two first, since a failure ends it.
        divergence = ""
        if isinstance(model, Decoder):
            if options.exact is None:
                parser.error("an LLM needs --exact")
            divergence = check_divergence(model, options.exact)
        found = replay(model)
    except OrtkitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    bits = "the same" if found.same_bits else "not the same"
    print(f"{found.count} golden, {found.agreement}, {bits} bits{divergence}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
