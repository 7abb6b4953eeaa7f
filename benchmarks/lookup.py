"""Decoding speed with and without prompt lookup, on answers that quote and that do not."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks import table
from benchmarks.decoding import BUNDLE, ids_of
from benchmarks.peers import ortkit_name
from benchmarks.processor import processor
from benchmarks.results import Figure, add_save, rate_figure, save
from benchmarks.rounds import take_turns
from benchmarks.table import print_table, ratio
from benchmarks.texts import CORPUS, read_lines
from ortkit import Decoder, Sampling
from ortkit.runtime.decoder.prompt_lookup import PromptLookup
from ortkit.runtime.text.messages import USER, Message

NEWS = 3
"""Which text of the corpus is quoted."""
QUESTIONS = ("Why is the sky blue?", "Tell me about the history of France.", "List ten tips to sleep better.")
LONG_PROMPT = 8000


@dataclass(frozen=True)
class Measured:
    """An answer and its speed."""

    ids: tuple[int, ...]
    seconds: float
    """Seconds from the first token to the last."""
    drafted: int
    """Drafted tokens."""
    right: int
    """Accepted tokens."""

    @property
    def rate(self) -> float:
        return (len(self.ids) - 1) / self.seconds


def prompts() -> dict[str, str]:
    """Label -> prompt."""
    code = Path(table.__file__).read_text(encoding="utf-8")
    return {
        "quotes a text": f"Quote the most important sentences of this text:\n\n{read_lines(CORPUS)[NEWS]}",
        "edits code": f"Rename `rows` to `records` in this Python code, and write all of it:\n\n```python\n{code}```",
        **{question: question for question in QUESTIONS},
    }


def measure(decoder: Decoder, ids: Sequence[int], *, sampling: Sampling, new: int, lookup: bool) -> Measured:
    """Answer a prompt with at most `new` tokens."""
    steps = decoder.steps(ids, max_tokens=new, sampling=sampling, lookup=lookup)
    drafted = right = 0
    for _ in steps:
        if steps.accepted:
            right += 1
        else:
            drafted += len(steps.draft)
    return Measured(tuple(steps.ids), steps.rates.new_seconds, drafted, right)


def row_of(name: str, without: Sequence[Measured], with_lookup: Sequence[Measured]) -> list[str]:
    """The table's row of a prompt, from the rounds of both."""
    rates = [[answer.rate for answer in answers] for answers in (without, with_lookup)]
    last = with_lookup[-1]
    return [
        name,
        f"{median(rates[0]):.1f}",
        f"{median(rates[1]):.1f}",
        ratio(rates[1], rates[0]),
        f"{last.right / last.drafted:.0%}" if last.drafted else "-",
        f"{last.right / len(last.ids):.0%}",
        "yes" if last.ids == without[-1].ids else "no",
    ]


def figures_of(name: str, ours: str, without: Sequence[Measured], with_lookup: Sequence[Measured]) -> list[Figure]:
    """The figures of a prompt for a result file."""
    rates = [[answer.rate for answer in answers] for answers in (without, with_lookup)]
    return [
        rate_figure(f"lookup, {name}", ours, rates[1], None, "tokens/s"),
        rate_figure(f"lookup, {name}", f"{ours}, without", rates[0], rates[1], "tokens/s"),
    ]


def lookup_seconds(ids: Sequence[int]) -> float:
    """CPU seconds of prompt lookup per token of a text, the least of five."""
    seconds = []
    for _ in range(5):
        start = time.process_time()
        PromptLookup(ids)
        seconds.append(time.process_time() - start)
    return min(seconds) / len(ids)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lookup", description=__doc__)
    parser.add_argument("--bundle", type=Path, default=BUNDLE)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--new", type=int, default=250, help="maximum tokens of each answer")
    parser.add_argument("--repeats", type=int, default=5, help="rounds, after one warm-up")
    add_save(parser, "lookup")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    decoder = Decoder(options.bundle, threads=options.threads)
    asked = {
        name: decoder.encode_exactly(decoder.apply_chat_template([Message(USER, text)]))
        for name, text in prompts().items()
    }
    runs = [
        partial(measure, decoder, ids, sampling=Sampling(), new=options.new, lookup=lookup)
        for ids in asked.values()
        for lookup in (False, True)
    ]
    answers = take_turns(runs, options.repeats)
    print(f"\n{processor()}")
    print_table(
        f"{decoder.bundle.manifest.name} {decoder.bundle.manifest.precision.value}, greedy, "
        f"{options.threads} threads: new tokens per second without lookup and with it",
        ["the answer", "without", "with", "with / without", "drafts right", "of the answer drafted", "same tokens"],
        [row_of(name, *answers[2 * place : 2 * place + 2]) for place, name in enumerate(asked)],
    )
    # Not by the decoder, which refuses a text that is far longer than its context.
    text = ids_of(options.bundle, LONG_PROMPT)
    seconds = lookup_seconds(text)
    print(
        f"\nPrompt lookup takes {1e6 * seconds:.1f} us of CPU time per token, "
        f"{1e3 * seconds * len(text):.0f} ms for a prompt of {len(text):,} tokens"
    )
    ours = ortkit_name(options.bundle, decoder.bundle.manifest.name)
    figures = [
        figure
        for place, name in enumerate(asked)
        for figure in figures_of(name, ours, *answers[2 * place : 2 * place + 2])
    ]
    save(options, "lookup", figures)


if __name__ == "__main__":
    main()
