"""The library's chat in a process of its own: `python -m benchmarks.chat_worker BUNDLE THREADS`.

Reads a request per line on stdin, as JSON, and answers with a line that has what `http_load.Load` has:

- `{"questions": [...], "max_tokens": N, "lookup": BOOL, "never": [...]}` answers one question after another, greedily;
  the tokens `never` do not come.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from benchmarks.http_load import Load, Reply

if TYPE_CHECKING:
    from ortkit import Decoder
    from ortkit.runtime.decoder.generation_options import GenerationOptions


NEVER = -100.0


def answer_in_turn(
    decoder: Decoder, questions: Sequence[str], max_tokens: int, *, lookup: bool, never: Sequence[int] = ()
) -> Load:
    start = time.perf_counter()
    options: GenerationOptions = {
        "max_tokens": max_tokens,
        "temperature": 0.0,
        "lookup": lookup,
        "logit_bias": dict.fromkeys(never, NEVER),
    }
    replies = [answer(decoder, question, options) for question in questions]
    return Load(time.perf_counter() - start, 0.0, tuple(replies))


def answer(decoder: Decoder, question: str, options: GenerationOptions) -> Reply:
    start = time.perf_counter()
    stream = decoder.stream_chat(messages_of(question), **options)
    times = [time.perf_counter() - start for token in stream if token.text]
    seconds = time.perf_counter() - start
    usage = stream.usage
    return Reply(
        seconds=seconds,
        first_seconds=times[0] if times else seconds,
        last_seconds=times[-1] if times else seconds,
        tokens=usage.completion_tokens,
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        vectors=0,
        finish_reason=None if stream.finish_reason is None else stream.finish_reason.value,
        text=stream.text,
    )


def messages_of(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def main(bundle: str, threads: str) -> None:
    from ortkit import Decoder

    decoder = Decoder(bundle, threads=int(threads))
    for line in sys.stdin:
        asked: dict[str, Any] = json.loads(line)
        load = answer_in_turn(
            decoder, asked["questions"], asked["max_tokens"], lookup=asked["lookup"], never=asked["never"]
        )
        print(json.dumps(asdict(load)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
