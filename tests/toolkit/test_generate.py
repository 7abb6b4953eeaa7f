from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ortkit import Bundle, Decoder, OutOfMemoryError, Sampling
from ortkit.runtime.decoder.generation import Steps
from ortkit.runtime.decoder.model_runner import ModelRunner
from ortkit.toolkit.commands.chat import chat
from ortkit.toolkit.commands.generate import generate
from tests.commands import Finished, on_terminal
from tests.decoders import write_decoder

Ortkit = Callable[..., Finished]
PROMPT = "The quick brown fox"
CHATML = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hm"},
    {"role": "user", "content": "And the dog?"},
]


def rows(out: bytes) -> list[dict]:
    return [json.loads(line) for line in out.decode().splitlines()]


def ended(text: str) -> bytes:
    return (text if text.endswith("\n") else text + "\n").encode()


def answer_to(decoder: Decoder, prompt: str, max_tokens: int = 12, **options: object) -> str:
    """The answer to a prompt that is formatted like the chat template."""
    return decoder.generate(decoder.encode_exactly(prompt), max_tokens=max_tokens, **options).text


@pytest.fixture
def asked(ortkit: Ortkit, decoder_bundle: Bundle) -> Ortkit:
    """Run `ortkit generate` for twelve tokens."""

    def run(*arguments: object, **settings: object) -> Finished:
        return ortkit("generate", decoder_bundle.path, "--max-tokens", 12, *arguments, **settings)

    return run


def test_the_chat_template_is_used_by_default(asked: Ortkit, decoder: Decoder) -> None:
    finished = asked("Hello")

    assert (finished.code, finished.err) == (0, "")
    assert finished.out == asked("Hello", "--chat").out == ended(answer_to(decoder, CHATML.format("Hello")))


def test_a_message_to_the_system(asked: Ortkit, decoder: Decoder) -> None:
    system = "<|im_start|>system\nBe brief.<|im_end|>\n"

    assert asked("Hello", "--system", "Be brief.").out == ended(answer_to(decoder, system + CHATML.format("Hello")))


def test_a_text_is_continued_as_it_is(asked: Ortkit, decoder: Decoder) -> None:
    assert asked(PROMPT, "--raw").out == ended(answer_to(decoder, PROMPT))


def test_without_a_template_a_text_is_continued(ortkit: Ortkit, decoder: Decoder, tmp_path: Path) -> None:
    bundle, _ = write_decoder(tmp_path / "base", chat=None)

    assert ortkit("generate", bundle.path, PROMPT, "--max-tokens", 12).out == ended(answer_to(decoder, PROMPT))
    finished = ortkit("generate", bundle.path, PROMPT, "--chat")
    assert (finished.code, finished.out) == (2, b"")
    assert finished.err.startswith(f"error: `{bundle.path}` has no chat template, so it cannot answer messages\n")
    finished = ortkit("generate", bundle.path, PROMPT, "--system", "a")
    assert finished.err == (
        "error: `--system` needs the chat template, and raw text has no messages\n\n"
        "hint: put it at the beginning of the prompt\n"
    )


def test_a_pipe_and_a_file_of_lines(asked: Ortkit, decoder: Decoder, tmp_path: Path) -> None:
    """A text of several lines is one prompt, without its last line break."""
    text = "Hello\n\nfox\n"
    (tmp_path / "prompt.txt").write_text(text)
    expected = ended(answer_to(decoder, CHATML.format("Hello\n\nfox")))

    assert asked(stdin=text.encode()).out == expected
    assert asked("--input", "-", stdin=b"\xef\xbb\xbfHello\r\n\r\nfox").out == expected
    assert asked("--input", tmp_path / "prompt.txt").out == expected
    finished = asked("--input", tmp_path / "prompt.txt", "--output", tmp_path / "answer.txt")
    assert (finished.out, (tmp_path / "answer.txt").read_bytes()) == (b"", expected)


def test_the_text_of_a_file_follows_the_prompt(asked: Ortkit, decoder: Decoder) -> None:
    expected = ended(answer_to(decoder, CHATML.format('Shorten:\n\n{"text": 5}')))

    assert asked("Shorten:", "--input", "-", stdin=b'{"text": 5}\n').out == expected
    # So does that of a pipe, as for `llm` and `ollama`.
    assert asked("Shorten:", stdin=b'{"text": 5}\n').out == expected
    assert asked("Hello", stdin=b"").out == asked("Hello", stdin=b"\n").out == asked("Hello").out


def test_options_change_the_answer_as_they_do_in_python(asked: Ortkit, decoder: Decoder) -> None:
    prompt = CHATML.format("Hello")
    for options, expected in [
        (["--temperature", 5, "--seed", 3], {"sampling": Sampling(temperature=5, seed=3)}),
        (["--temperature", 5, "--seed", 3, "--top-k", 4], {"sampling": Sampling(temperature=5, seed=3, top_k=4)}),
        (["--temperature", 5, "--seed", 3, "--top-p", 0.5], {"sampling": Sampling(temperature=5, seed=3, top_p=0.5)}),
        (["--temperature", 5, "--seed", 3, "--min-p", 0.4], {"sampling": Sampling(temperature=5, seed=3, min_p=0.4)}),
        (["--repetition-penalty", 9], {"sampling": Sampling(repetition_penalty=9)}),
        (["--presence-penalty", 90], {"sampling": Sampling(presence_penalty=90)}),
        (["--frequency-penalty", 3], {"sampling": Sampling(frequency_penalty=3)}),
    ]:
        assert asked("Hello", *options).out == ended(answer_to(decoder, prompt, **expected)), options
    assert len({asked("Hello", "--temperature", 5, "--seed", seed).out for seed in range(4)}) == 4
    assert asked("Hello", "--threads", 1, "--context", 100).out == asked("Hello").out
    text = answer_to(decoder, prompt)
    assert asked("Hello", "--stop", "never", "--stop", text[5:7]).out == ended(text[: text.index(text[5:7])])


@pytest.mark.parametrize(("option", "looks_up"), [((), True), (("--lookup",), True), (("--no-lookup",), False)])
def test_drafts_are_made_unless_they_are_declined(
    asked: Ortkit, decoder: Decoder, monkeypatch: pytest.MonkeyPatch, option: tuple[str, ...], *, looks_up: bool
) -> None:
    """The small decoder gives the same answer with and without prompt lookup."""
    lookups = []
    steps = Decoder._steps

    def noted(self: Decoder, *arguments: object, **options: object) -> Steps:
        found = steps(self, *arguments, **options)
        lookups.append(found.lookup is not None)
        return found

    monkeypatch.setattr(Decoder, "_steps", noted)

    assert asked("Hello", *option).out == ended(answer_to(decoder, CHATML.format("Hello"), lookup=False))
    assert lookups == [looks_up, False]


def test_the_publishers_defaults_apply(ortkit: Ortkit, tmp_path: Path) -> None:
    from ortkit.runtime.bundle.manifest import GenerationDefaults

    generation = GenerationDefaults(temperature=5.0, top_k=1)
    bundle, _ = write_decoder(tmp_path / "stated", generation=generation)
    answers = [
        ortkit("generate", bundle.path, "Hello", "--max-tokens", 12, *options).out
        for options in (["--seed", 1], ["--seed", 2], ["--seed", 1, "--top-k", 0], ["--seed", 2, "--top-k", 0])
    ]

    assert answers[0] == answers[1]
    assert len({*answers[1:]}) == 3


def test_json_has_text_tokens_and_rates(asked: Ortkit, decoder: Decoder) -> None:
    prompt = decoder.encode_exactly(CHATML.format("Hello"))
    expected = decoder.generate(prompt, max_tokens=12, top_logprobs=3)
    finished = asked("Hello", "--json", "--logprobs", 3)
    (found,) = rows(finished.out)

    assert found["text"] == expected.text
    assert found["finish_reason"] == "length"
    assert [(token["id"], token["text"]) for token in found["tokens"]] == [
        (token.id, token.text) for token in expected.tokens
    ]
    assert [token["logprob"] for token in found["tokens"]] == pytest.approx(
        [token.logprob for token in expected.tokens], abs=1e-5
    )
    for token in found["tokens"]:
        # The answer is greedy, so each token is the most probable one; the first follows `assistant`.
        assert (token["top_logprobs"][0]["id"], len(token["top_logprobs"])) == (token["id"], 3)
    assert found["usage"]["prompt_tokens"] == len(prompt)
    assert (found["usage"]["cached_tokens"], found["usage"]["completion_tokens"]) == (0, 12)
    assert found["rates"]["new_per_second"] > 0
    assert "top_logprobs" not in rows(asked("Hello", "--json").out)[0]["tokens"][0]


@pytest.mark.parametrize("prompt", ["Hello", "ж"], ids=["words", "a character of two tokens"])
def test_most_probable_tokens_have_their_text(asked: Ortkit, decoder: Decoder, prompt: str) -> None:
    options = ("--raw", "--json", "--logprobs", decoder.facts.vocabulary, "--max-tokens", 1)
    (found,) = rows(asked(prompt, *options).out)
    texts = {one["id"]: one["text"] for one in found["tokens"][0]["top_logprobs"]}

    word = next(token for token in sorted(decoder.tokenizer.get_vocab()) if re.fullmatch("Ġ[a-z]+", token))
    assert (texts[2], texts[decoder.tokenizer.token_to_id(word)]) == ("<|im_end|>", f" {word[1:]}")
    assert texts[decoder.tokenizer.token_to_id("Ã")] == "\ufffd"


def test_an_object_for_each_token(asked: Ortkit) -> None:
    (expected,) = rows(asked("Hello", "--json").out)
    *pieces, last = rows(asked("Hello", "--json", "--stream").out)

    assert pieces == expected["tokens"]
    assert "".join(piece["text"] for piece in pieces) == expected["text"]
    assert (last["finish_reason"], last["usage"]["completion_tokens"]) == ("length", 12)


def test_lines_of_json(asked: Ortkit, decoder: Decoder) -> None:
    lines = [{"prompt": "Hello", "id": 7, "ü": []}, {"messages": MESSAGES}, {"prompt": "Hello", "text": "old"}]
    stdin = ("\n" + "\n\n".join(map(json.dumps, lines))).encode()
    finished = asked(stdin=stdin)
    found = rows(finished.out)
    dialogue = "".join(f"<|im_start|>{one['role']}\n{one['content']}<|im_end|>\n" for one in MESSAGES)
    conversation = dialogue + "<|im_start|>assistant\n"

    assert (finished.code, finished.err) == (0, "")
    assert found[0]["text"] == found[2]["text"] == answer_to(decoder, CHATML.format("Hello"))
    assert found[1]["text"] == answer_to(decoder, conversation)
    assert (found[0]["id"], found[0]["ü"], found[1]["messages"]) == (7, [], MESSAGES)
    assert list(found[0]) == ["prompt", "id", "ü", "text", "finish_reason", "usage", "rates"]
    assert found[2]["usage"]["cached_tokens"] > 0
    assert len(rows(asked("--json", stdin=stdin).out)[1]["tokens"]) == 12
    assert len(rows(asked("--logprobs", 2, stdin=stdin).out)[1]["tokens"][0]["top_logprobs"]) == 2


def test_a_conversation_keeps_its_own_message_to_the_system(asked: Ortkit) -> None:
    own, without = json.dumps({"messages": MESSAGES}), json.dumps({"messages": MESSAGES[1:]})
    first, second = rows(asked("--system", "Be brief.", stdin=f"{own}\n{without}".encode()).out)

    assert first["usage"]["prompt_tokens"] == second["usage"]["prompt_tokens"]
    assert first["text"] == second["text"]


def test_the_format_can_be_given(asked: Ortkit, decoder: Decoder) -> None:
    line = b'{"prompt": "Hello"}'

    assert asked("--input-format", "text", stdin=line).out == ended(answer_to(decoder, CHATML.format(line.decode())))
    finished = asked("--input-format", "jsonl", stdin=b"Hello")
    assert finished.code == 2
    assert finished.err.startswith("error: line 1 is not valid JSON")
    assert asked("--input-format", "jsonl", stdin=b"") == Finished(0, b"", "")


def test_a_number_that_json_does_not_have_ends_the_run(asked: Ortkit) -> None:
    finished = asked(stdin=b'{"prompt": "Hello", "x": NaN}\n')

    assert (finished.code, finished.out) == (2, b"")
    assert finished.err.startswith("error: line 1 has `NaN`, which cannot be written as a JSON number\n")


def test_answers_before_a_broken_line_are_given(asked: Ortkit) -> None:
    finished = asked(stdin=b'{"prompt": "a"}\n{')

    assert finished.code == 2
    assert [row["prompt"] for row in rows(finished.out)] == ["a"]
    assert finished.err.startswith("error: line 2 is not valid JSON")


def test_a_prefix_is_read_once(asked: Ortkit, tmp_path: Path) -> None:
    system = "The dog sleeps. " * 20
    saved = tmp_path / "prefix"
    first = asked("Hello", "--system", system, "--save-prefix", saved)
    second = asked("And?", "--system", system, "--load-prefix", saved, "--json")
    (found,), (fresh,) = rows(second.out), rows(asked("And?", "--system", system, "--json").out)

    assert (first.code, second.code, second.err) == (0, 0, "")
    assert found["tokens"] == fresh["tokens"]
    assert fresh["usage"]["cached_tokens"] == 0
    assert found["usage"]["cached_tokens"] > 100


def test_a_saved_prefix_holds_the_prompt_alone(asked: Ortkit, decoder: Decoder, tmp_path: Path) -> None:
    asked("Hello", "--save-prefix", tmp_path / "prefix")

    assert decoder.load_cache(tmp_path / "prefix").ids == decoder.encode_exactly(CHATML.format("Hello"))


def test_a_prefix_that_cannot_be_used(asked: Ortkit, ortkit: Ortkit, decoder_bundle: Bundle, tmp_path: Path) -> None:
    other, _ = write_decoder(tmp_path / "other", window=7)
    ortkit("generate", other.path, "Hello", "--max-tokens", 1, "--save-prefix", tmp_path / "prefix")
    finished = asked("Hello", "--load-prefix", tmp_path / "prefix")

    assert (finished.code, finished.out) == (2, b"")
    assert finished.err == (
        f"error: `{tmp_path}/prefix` was saved with another bundle, `tiny-decoder`, and this is "
        f"`{decoder_bundle.path}`\n\n"
        "hint: load it with that bundle, or prefill the prompt again and save a new file\n"
    )
    assert asked("Hello", "--load-prefix", tmp_path / "none").code == 5


def test_a_prefix_that_cannot_be_written_is_refused_before_the_answer(asked: Ortkit, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, message in [
        (tmp_path / "none" / "prefix", f"`{tmp_path}/none/prefix` cannot be written: No such file or directory\n"),
        (".", "`.` cannot be written: it is a folder\n"),
        ("", "the name of the file to write is empty\n\nhint: name a file\n"),
        (tmp_path / "pipe", f"`{tmp_path}/pipe` cannot be written: it is not a regular file\n"),
    ]:
        assert asked("Hello", "--save-prefix", name) == Finished(1, b"", f"error: {message}")


@pytest.mark.parametrize("option", ["--output", "--save-prefix"])
def test_the_input_is_not_replaced(asked: Ortkit, tmp_path: Path, option: str) -> None:
    path = tmp_path / "prompt.txt"
    path.write_text("Hello")

    for arguments in ([], ["Shorten:"]):
        finished = asked(*arguments, "--input", path, option, path)
        assert (finished.code, finished.out) == (2, b"")
        assert finished.err == (
            f"error: `{path}` is also the input, and would be replaced\n\nhint: choose another file with `{option}`\n"
        )
    assert path.read_text() == "Hello"


def test_rates_are_printed_on_request(asked: Ortkit, decoder: Decoder) -> None:
    count = len(decoder.encode_exactly(CHATML.format("Hello")))
    line = json.dumps({"prompt": "Hello"}).encode()

    assert re.fullmatch(
        rf"prompt: {count} tokens, [\d.]+ tok/s; generated 12 tokens, [\d.]+ tok/s; first token \d\.\d\d s\n",
        asked("Hello", "--rates").err,
    )
    prompts = rf"prompt: {2 * count} tokens \({count - 1} cached\), [\d.]+ tok/s"
    assert re.fullmatch(
        rf"2 answers; {prompts}; generated 24 tokens, [\d.]+ tok/s\n",
        asked("--rates", stdin=line + b"\n" + line).err,
    )


def test_rates_are_printed_on_a_terminal(decoder_bundle: Bundle) -> None:
    command = [sys.executable, "-m", "ortkit", "generate", str(decoder_bundle.path), "Hello", "--max-tokens", "3"]

    assert "; generated 3 tokens, " in on_terminal(command)


@pytest.mark.usefixtures("interrupted")
def test_an_interrupt_ends_the_answer(asked: Ortkit, decoder: Decoder) -> None:
    finished = asked("Hello", "--max-tokens", 900, "--rates")
    first_three = answer_to(decoder, CHATML.format("Hello"), 3)

    assert finished.code == 130
    assert finished.out.startswith(first_three.rstrip("\ufffd").encode())
    assert finished.out.endswith(b"\n")
    assert "; generated 3 tokens, " in finished.err
    assert finished.err.endswith("interrupted\n")


@pytest.mark.usefixtures("interrupted")
def test_an_interrupted_answer_says_so_in_json(asked: Ortkit) -> None:
    finished = asked("Hello", "--json")

    assert finished.code == 130
    assert [row["finish_reason"] for row in rows(finished.out)] == ["cancelled"]


@pytest.mark.usefixtures("interrupted")
def test_an_interrupted_line_is_not_written(asked: Ortkit, tmp_path: Path) -> None:
    finished = asked("--output", tmp_path / "answers.jsonl", stdin=b'{"prompt": "Hello"}')

    assert (finished.code, finished.out, finished.err) == (130, b"", "interrupted\n")
    assert list(tmp_path.iterdir()) == []


# Generates at most 20 tokens per second.
SLOWLY = """
import time
from ortkit import Stream
from ortkit.toolkit.cli import main
original = Stream.__next__
Stream.__next__ = lambda stream: (time.sleep(0.05), original(stream))[1]
main()
"""


def test_text_comes_while_it_is_written_and_a_reader_may_leave(decoder_bundle: Bundle) -> None:
    """The whole answer fills the context, and would take a minute here."""
    command = [sys.executable, "-c", SLOWLY, "generate", str(decoder_bundle.path), "b"]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=buffered) as process:
        first = os.read(process.stdout.fileno(), 1 << 16)
        process.stdout.close()
        errors = process.stderr.read()

    assert 0 < len(first) < 100
    assert (process.returncode, errors) == (141, b"")


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        ([""], b"", "error: the prompt is empty\n"),
        ([" \n"], b"", "error: the prompt is empty\n"),
        (["", "--raw"], b"", "error: the prompt is empty\n"),
        ([], b"", "error: the prompt is empty\n"),
        (["dog " * 2000], b"", "error: the prompt has "),
        (["a", "--max-tokens", 2000], b"", "error: `max_tokens` is 2000, and a prompt of "),
        (["a", "--temperature", -1], b"", "error: `temperature` must be 0 or more, not -1.0\n"),
        (["a", "--top-p", 0], b"", "error: `top_p` must be above 0 and at most 1, not 0.0\n"),
        (["a", "--top-k", -1], b"", "error: `top_k` must be 0 for all tokens, or more, not -1\n"),
        (["a", "--min-p", 2], b"", "error: `min_p` must be from 0 to 1, not 2.0\n"),
        (["a", "--repetition-penalty", 0], b"", "error: `repetition_penalty` must be above 0, not 0.0\n"),
        (["a", "--seed", -1], b"", "error: `seed` must be 0 or more, not -1\n"),
        (["a", "--stop", ""], b"", "error: stop string 0 is empty, so every answer would be empty"),
        (
            ["a", "--context", 5000],
            b"",
            "error: `context` must be from 2 to 1024, the model's context length, not 5000\n",
        ),
        (["a", "--logprobs", 5], b"", "error: `--logprobs` needs `--json`\n\nhint: add `--json`\n"),
        (["a", "--json", "--logprobs", 999], b"", "error: `top_logprobs` must be from 0 to "),
        (["a", "--stream"], b"", "error: `--stream` needs `--json`: plain text is streamed already\n"),
        (["a", "--system", "b", "--raw"], b"", "error: `--system` needs the chat template, and raw text"),
        ([], b"a\0b", "error: line 1 has a NUL byte and is not text"),
        ([], b"a\n\xff", "error: line 2 is not valid UTF-8 at byte 1"),
        (["a", "--input", "-"], b'{"prompt": "b"}', "error: PROMPT was given, and the input has prompts"),
        (["--json", "--stream"], b'{"prompt": "b"}', "error: `--stream` needs a single prompt, and the input has many"),
        (
            ["--save-prefix", "x"],
            b'{"prompt": "b"}',
            "error: `--save-prefix` needs a single prompt, and",
        ),
        (["--raw"], b'{"messages": [{"role": "user", "content": "a"}]}', "error: line 1: `messages` need a chat"),
        ([], b'{"prompt": 5}', "error: the field `prompt` of line 1 must be a string"),
        ([], b'{"prompt": " "}', "error: line 1: the prompt is empty\n"),
        ([], b'{"prompt": "\\ud800"}', "error: the prompt in line 1 is not valid Unicode"),
        ([], b'{"prompt": "a", "messages": []}', "error: line 1 has both a `prompt` and `messages`\n\nhint: give"),
        (["--input-format", "jsonl"], b'{"text": "a"}', "error: line 1 has neither a `prompt` nor `messages`; its"),
        ([], b'{"messages": []}', "error: the field `messages` of line 1 must be a non-empty list of messages"),
        ([], b'{"messages": [5]}', "error: line 1: message 0 must have `role` and `content`, not be int"),
        ([], b'{"messages": [{"role": "x", "content": "a"}]}', "error: line 1: message 0 has the role `x`, which the"),
        ([], b'\n{"prompt": "%s"}' % (b"dog " * 2000), "error: line 2: the prompt has "),
    ],
)
def test_input_that_cannot_be_used_ends_with_2(
    ortkit: Ortkit, decoder_bundle: Bundle, arguments: list, stdin: bytes, message: str
) -> None:
    finished = ortkit("generate", decoder_bundle.path, *arguments, stdin=stdin)

    assert (finished.code, finished.out) == (2, b"")
    assert finished.err.startswith(message)


def test_a_prompt_that_is_too_long_says_by_how_much(ortkit: Ortkit, decoder_bundle: Bundle, decoder: Decoder) -> None:
    count = len(decoder.encode_exactly(CHATML.format("Hello")))
    finished = ortkit("generate", decoder_bundle.path, "Hello", "--context", 10)

    assert finished.err == (
        f"error: the prompt has {count} tokens, {count - 9} more than the context of 10 has room for with an answer"
        "\n\nhint: shorten it, or raise `context`\n"
    )


def test_a_terminal_without_a_prompt(ortkit: Ortkit, decoder_bundle: Bundle) -> None:
    finished = ortkit("generate", decoder_bundle.path, tty=True)

    assert finished.code == 2
    assert finished.err.startswith("error: no prompt\n\nhint: ortkit generate ")


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_an_embedder_names_its_command(ortkit: Ortkit, int8_bundle: Bundle, command: str) -> None:
    finished = ortkit(command, int8_bundle.path, *(["Hello"] if command == "generate" else []))

    assert finished.code == 7
    assert finished.err == (
        f"error: `{int8_bundle.path}` is an embedder, not a decoder\n\nhint: use `ortkit embed {int8_bundle.path}`\n"
    )


@pytest.mark.parametrize(
    ("command", "noun"), [(["embed", "a"], "an embedder"), (["rerank", "--query", "q", "a"], "a reranker")]
)
def test_other_commands_point_to_generate(
    ortkit: Ortkit, decoder_bundle: Bundle, command: list[str], noun: str
) -> None:
    finished = ortkit(command[0], decoder_bundle.path, *command[1:])

    assert finished.code == 7
    assert finished.err == (
        f"error: `{decoder_bundle.path}` is a decoder, not {noun}\n\n"
        f"hint: use `ortkit generate {decoder_bundle.path}`\n"
    )


def test_the_page_names_every_option_and_no_other() -> None:
    page = (Path(__file__).parents[2] / "docs" / "generate.md").read_text("utf-8")
    named = set(re.findall(r"--[a-z][a-z-]*", page))
    options = {
        name
        for command in (chat, generate)
        for option in command.params
        for name in (*option.opts, *option.secondary_opts)
    }

    assert {name for name in options if name.startswith("--")} == named


def test_memory_that_runs_out_leaves_the_record_so_far(
    asked: Ortkit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With its own fields, and the error instead of a finish reason; the records before it are whole."""
    records = tmp_path / "questions.jsonl"
    records.write_text("".join(f'{{"prompt": "Hello", "id": {number}}}\n' for number in range(3)))
    whole = json.loads(asked("Hello", "--json", "--no-lookup").out)
    run, runs = ModelRunner.run, []
    each = len(whole["tokens"]) + 1

    def failing(self: ModelRunner, ids: Sequence[int], positions: int = 1, **named: Any) -> np.ndarray:
        runs.append(len(ids))
        if len(runs) == each + 3:
            raise OutOfMemoryError("the device is full", hint="free some memory")
        return run(self, ids, positions, **named)

    monkeypatch.setattr(ModelRunner, "run", failing)
    finished = asked("--input", str(records), "--no-lookup")
    found = [json.loads(line) for line in finished.out.splitlines()]

    assert finished.code == 9
    assert [one["id"] for one in found] == [0, 1]
    assert found[0]["text"] == whole["text"]
    assert "error" not in found[0]
    assert found[1]["error"] == {
        "message": f"the device is full; the answer so far, {found[1]['usage']['completion_tokens']} tokens, is kept",
        "hint": "free some memory",
        "exit_code": 9,
    }
    assert found[1]["finish_reason"] is None
    assert found[1]["usage"]["completion_tokens"] > 0
    assert whole["text"].startswith(found[1]["text"])


def test_memory_that_runs_out_leaves_the_answer_so_far(asked: Ortkit, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU it may, in the middle of an answer."""
    whole = json.loads(asked("Hello", "--json", "--no-lookup").out)
    run, runs = ModelRunner.run, []

    def failing(self: ModelRunner, ids: Sequence[int], positions: int = 1, **named: Any) -> np.ndarray:
        runs.append(len(ids))
        if len(runs) == 4:
            raise OutOfMemoryError("the device is full", hint="free some memory")
        return run(self, ids, positions, **named)

    monkeypatch.setattr(ModelRunner, "run", failing)
    for options, expected in ((["--json"], None), ([], whole["text"])):
        runs.clear()
        finished = asked("Hello", "--no-lookup", *options)

        assert finished.code == 9
        assert finished.err == (
            "error: the device is full; the answer so far, 3 tokens, is kept\n\nhint: free some memory\n"
        )
        if expected is None:
            found = json.loads(finished.out)
            assert found["tokens"] == whole["tokens"][:3]
            assert (found["finish_reason"], found["usage"]["completion_tokens"]) == (None, 3)
            assert found["error"]["exit_code"] == 9
            assert whole["text"].startswith(found["text"])
        else:
            assert finished.out.decode().rstrip("\n") == "".join(token["text"] for token in whole["tokens"][:3])
