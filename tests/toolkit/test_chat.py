from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import pytest

from ortkit import Bundle, Chat, Decoder, InputError, Sampling
from ortkit.runtime.decoder.stream import Stream
from ortkit.runtime.text.messages import Message
from ortkit.toolkit.commands.chat_session import ChatSession, OnFull, messages_that_fit
from ortkit.toolkit.console.progress import CLEAR, prefill_progress
from ortkit.toolkit.io.answer_options import AnswerOptions
from ortkit.toolkit.io.answer_output import prompt_progress
from tests.commands import Finished, read_terminal
from tests.decoders import CHATML, CONTEXT, write_decoder

Ortkit = Callable[..., Finished]


@pytest.fixture
def talk(ortkit: Ortkit, decoder_bundle: Bundle) -> Ortkit:
    """Run `ortkit chat` with answers of nine tokens and lines from a pipe."""

    def run(*lines: str, options: tuple[object, ...] = (), max_tokens: int = 9) -> Finished:
        stdin = "".join(f"{line}\n" for line in lines).encode()
        return ortkit("chat", decoder_bundle.path, "--max-tokens", max_tokens, *options, stdin=stdin)

    return run


def answers(decoder: Decoder, *messages: str, system: str | None = None, **options: object) -> list[str]:
    """The answers to a conversation's messages."""
    chat = Chat(decoder, system=system)
    return [chat.send(message, max_tokens=9, **options).answer().text for message in messages]


def written(*texts: str) -> bytes:
    return "".join(text if text.endswith("\n") else f"{text}\n" for text in texts).encode()


def test_each_line_of_a_pipe_is_a_message(talk: Ortkit, decoder: Decoder) -> None:
    finished = talk("Hello", "", "And the dog?", "Hm")

    assert (finished.code, finished.err) == (0, "")
    assert finished.out == written(*answers(decoder, "Hello", "And the dog?", "Hm"))
    assert talk() == Finished(0, b"", "")


def test_messages_of_several_lines(talk: Ortkit, decoder: Decoder) -> None:
    expected = written(*answers(decoder, "Hello\nfox", "Hm"))

    assert talk("Hello\\", "fox", "Hm").out == expected
    assert talk('"""', "Hello", "fox", '"""', "Hm").out == expected


def test_options_are_those_of_generate(talk: Ortkit, decoder: Decoder) -> None:
    sampling = Sampling(temperature=5, seed=3, top_k=9)
    options = ("--temperature", 5, "--seed", 3, "--top-k", 9, "--system", "Be brief.", "--context", 200)

    assert talk("Hello", "Hm", options=options).out == written(
        *answers(decoder, "Hello", "Hm", system="Be brief.", sampling=sampling)
    )
    (whole,) = answers(decoder, "Hello")
    assert talk("Hello", options=("--stop", whole[4:6])).out == written(whole[: whole.index(whole[4:6])])


@pytest.mark.parametrize(("option", "looks_up"), [((), True), (("--lookup",), True), (("--no-lookup",), False)])
def test_drafts_are_made_unless_they_are_declined(
    talk: Ortkit, decoder: Decoder, monkeypatch: pytest.MonkeyPatch, option: tuple[str, ...], *, looks_up: bool
) -> None:
    (expected,) = answers(decoder, "Hello", lookup=False)
    lookups = []
    stream = Decoder.stream

    def noted(self: Decoder, *arguments: object, **options: object) -> Stream:
        found = stream(self, *arguments, **options)
        lookups.append(found.steps.lookup is not None)
        return found

    monkeypatch.setattr(Decoder, "stream", noted)

    assert talk("Hello", "/regenerate", options=option).out == written(expected, expected)
    assert lookups == [looks_up] * 2


def test_reset_begins_anew_with_the_same_system(talk: Ortkit, decoder: Decoder) -> None:
    finished = talk("Hello", "/reset", "Hm", options=("--system", "Be brief."))
    expected = [*answers(decoder, "Hello", system="Be brief."), *answers(decoder, "Hm", system="Be brief.")]

    assert (finished.code, finished.out) == (0, written(*expected))


def test_an_answer_can_be_given_again(talk: Ortkit, decoder: Decoder) -> None:
    first, second = answers(decoder, "Hello", "Hm")
    greedy = talk("Hello", "/regenerate", "Hm")
    seeded = talk("Hello", "/regenerate", options=("--seed", 1, "--temperature", 5))
    sampled = talk("Hello", "/regenerate", options=("--temperature", 5))

    assert greedy.out == written(first, first, second)
    assert greedy.err == (
        "note: decoding is greedy, so the answer will be the same; `/set temperature 0.7` gives another\n"
    )
    assert seeded.err == "note: the seed is fixed, so the answer will be the same; `/set seed N` gives another\n"
    assert sampled.err == ""
    assert len(sampled.out) > 2
    assert sampled.out[: len(sampled.out) // 2] != sampled.out[len(sampled.out) // 2 :]


def test_a_conversation_continues_after_a_save(talk: Ortkit, decoder: Decoder, tmp_path: Path) -> None:
    path = tmp_path / "my talk"
    first, second = answers(decoder, "Hello", "Hm")
    saved = talk("Hello", f"/save {path}")
    loaded = talk("Something else", f"/load {path}", "Hm", options=("--rates",))

    assert (saved.code, saved.out, saved.err) == (0, written(first), f"note: saved 2 messages to `{path}`\n")
    assert loaded.out == written(*answers(decoder, "Something else"), second)
    assert loaded.err.startswith(f"note: loaded 2 messages from `{path}`\n")
    assert re.search(
        r"2 answers; prompt: \d+ tokens \(\d\d cached\), [\d.]+ tok/s; generated 18 tokens, [\d.]+ tok/s\n$", loaded.err
    )


def test_a_saved_prefix_is_no_conversation(talk: Ortkit, decoder: Decoder, tmp_path: Path) -> None:
    decoder.save_cache(tmp_path / "prefix", decoder.prefill("Hello"))
    finished = talk(f"/load {tmp_path}/prefix", "Hello")

    assert (finished.code, finished.out) == (2, b"")
    assert finished.err == (
        f"error: `{tmp_path}/prefix` is the prompt cache of a prompt, not of a conversation\n\n"
        "hint: load it with `decoder.load_cache(path)`, or `ortkit generate --load-prefix`\n"
    )


def test_a_saved_conversation_is_a_prefix_too(
    ortkit: Ortkit, talk: Ortkit, decoder_bundle: Bundle, tmp_path: Path
) -> None:
    talk("Hello", f"/save {tmp_path}/talk")
    finished = ortkit(
        "generate", decoder_bundle.path, "Hello", "--max-tokens", 2, "--json", "--load-prefix", tmp_path / "talk"
    )

    usage = json.loads(finished.out)["usage"]
    assert usage["prompt_tokens"] - usage["cached_tokens"] == 1


def test_help_and_exit(talk: Ortkit) -> None:
    finished = talk("/help", "/exit", "Hello")

    assert (finished.code, finished.out) == (0, b"")
    for command in (
        "/regenerate",
        "/system TEXT",
        "/set NAME VALUE",
        "/reset",
        "/save FILE",
        "/load FILE",
        "/help",
        "/exit,",
    ):
        assert f"{command} " in finished.err


def test_a_message_that_begins_with_a_slash(talk: Ortkit, decoder: Decoder) -> None:
    assert talk(" /help").out == written(*answers(decoder, " /help"))


@pytest.mark.parametrize(
    ("lines", "code", "message"),
    [
        (
            ["/nothing"],
            2,
            "error: there is no command `/nothing`\n\nhint: `/help` lists them; a message that begins with /",
        ),
        (
            ["/regenrate"],
            2,
            "error: there is no command `/regenrate`\n\nhint: did you mean `/regenerate`?",
        ),
        (
            ["/set temprature 1"],
            2,
            "error: there is no option `temprature`\n\nhint: did you mean `temperature`?",
        ),
        (["/set temperature hot"], 2, "error: `temperature` must be a number, not 'hot'\n"),
        (["/set temperature -1"], 2, "error: `temperature` must be "),
        (["/set max-tokens 0"], 2, "error: `max_tokens` must be at least 1, not 0\n"),
        (["/set lookup maybe"], 2, "error: `lookup` must be true or false, not 'maybe'\n"),
        (["/reset now"], 2, "error: there is no command `/reset now`\n"),
        (["/save"], 2, "error: `/save` needs a file name\n\nhint: /save talk.ortkit\n"),
        (["/load "], 2, "error: `/load` needs a file name\n\nhint: /load talk.ortkit\n"),
        (["/load no such file"], 5, "error: there is no file `no such file`\n"),
        (["/save no/such/folder"], 1, "error: `no/such/folder` cannot be written: No such file or directory\n"),
        (["/save ."], 1, "error: `.` cannot be written: it is a folder\n"),
        (
            ["/save ~nobodyhere/talk"],
            2,
            "error: there is no home folder for `~nobodyhere/talk`\n\nhint: give the whole",
        ),
        (
            ["/load ~nobodyhere/talk"],
            2,
            "error: there is no home folder for `~nobodyhere/talk`\n\nhint: give the whole",
        ),
        (["/regenerate"], 2, "error: there is no answer yet to regenerate\n\nhint: send a message first\n"),
        (["Hello", "dog " * 2000], 2, "error: the prompt has "),
        (["Hello", "a\0"], 2, "error: line 2 has a NUL byte and is not text"),
    ],
)
def test_an_error_ends_a_chat_from_a_pipe(talk: Ortkit, lines: list[str], code: int, message: str) -> None:
    finished = talk(*lines, "Never")

    assert finished.code == code
    assert finished.err.startswith(message)
    assert finished.out.count(b"\n") >= (lines[0] == "Hello")


def test_a_full_context_names_the_way_out(talk: Ortkit) -> None:
    assert talk("dog " * 2000).err.endswith("\n\nhint: `/reset` starts a new conversation\n")


def test_an_answer_that_fills_the_context_says_so(ortkit: Ortkit, decoder_bundle: Bundle) -> None:
    finished = ortkit("chat", decoder_bundle.path, "--context", 60, stdin=b"Hello")

    assert finished.code == 0
    assert finished.err == "note: the answer ends here because the context is full\n"


def test_options_are_checked_before_a_chat_begins(talk: Ortkit) -> None:
    finished = talk(options=("--top-p", 0))

    assert (finished.code, finished.err) == (2, "error: `top_p` must be above 0 and at most 1, not 0.0\n")


def test_a_model_without_a_template(ortkit: Ortkit, tmp_path: Path) -> None:
    bundle, _ = write_decoder(tmp_path / "base", chat=None)
    finished = ortkit("chat", bundle.path, stdin=b"Hello")

    assert (finished.code, finished.out) == (2, b"")
    assert finished.err == (
        f"error: `{bundle.path}` has no chat template, so it cannot answer messages\n\n"
        "hint: continue a text with `generate`, or use a model that was trained for chat\n"
    )


def test_errors_of_the_chat_template(ortkit: Ortkit, tmp_path: Path) -> None:
    from ortkit.runtime.bundle.manifest import ChatFacts

    template = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    bundle, _ = write_decoder(tmp_path / "strict", chat=ChatFacts(template + CHATML, {}))
    finished = ortkit("chat", bundle.path, "--system", "Be brief.", stdin=b"Hello")

    assert finished.code == 2
    assert finished.err == (
        "error: the model's chat template refuses these messages: System role not supported\n\n"
        "hint: their roles are `system`, `user`\n"
    )


@pytest.mark.usefixtures("interrupted")
def test_an_interrupt_ends_a_pipe(talk: Ortkit) -> None:
    finished = talk("Hello", "Hm", max_tokens=900, options=("--rates",))

    assert finished.code == 130
    assert re.fullmatch(
        r"prompt: \d+ tokens, [\d.]+ tok/s; generated 3 tokens, [\d.]+ tok/s; first token \d\.\d\d s\ninterrupted\n",
        finished.err,
    )


# Takes the terminal of its new session, so that Ctrl-C reaches it, and generates at most 20 tokens per second.
ON_TERMINAL = """
import fcntl, sys, termios, time
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from ortkit import Stream
from ortkit.toolkit.cli import main
original = Stream.__next__
Stream.__next__ = lambda stream: (time.sleep(0.05), original(stream))[1]
main()
"""


class Terminal:
    """`ortkit` on a terminal that a test types to and reads from."""

    def __init__(self, *arguments: object, **environment: str) -> None:
        self.ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", ON_TERMINAL, *map(str, arguments)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm", "INPUTRC": os.devnull, **environment},
        )
        os.close(theirs)
        self.shown = ""

    def type(self, keys: str) -> None:
        os.write(self.ours, keys.encode())

    def interrupt(self, pattern: str) -> str:
        """Type Ctrl-C until a pattern is shown: CPython's readline misses it while it handles a character."""
        while True:
            self.type("\x03")
            if select.select([self.ours], [], [], 2)[0]:
                return self.until(pattern)

    def until(self, pattern: str) -> str:
        """The output up to and including a pattern, which is consumed."""
        while not (found := re.search(pattern, self.shown)):
            block = read_terminal(self.ours)
            assert block, f"ended before {pattern!r}: {self.shown!r}"
            self.shown += block.decode("utf-8", "replace")
        before, self.shown = self.shown[: found.end()], self.shown[found.end() :]
        return before


@contextmanager
def terminal(*arguments: object, **environment: str) -> Iterator[Terminal]:
    opened = Terminal(*arguments, **environment)
    try:
        yield opened
    finally:
        opened.process.kill()
        opened.process.wait()
        os.close(opened.ours)


def test_a_person_talks_on_a_terminal(decoder_bundle: Bundle) -> None:
    with terminal("chat", decoder_bundle.path, "--max-tokens", 3) as person:
        assert "tiny-decoder; /help lists commands, Ctrl-D leaves" in person.until("> ")
        person.type("Hello\n")
        person.until("> ")
        # On a terminal, neither errors nor Ctrl-C at the prompt end a conversation.
        person.type("/nothing\n")
        assert "error: there is no command `/nothing`" in person.until("> ")
        person.type("Hel")
        person.until("Hel")
        assert "note: Ctrl-D or `/exit` leaves" in person.interrupt("> ")
        person.type("\x04")
        person.until(r"prompt: \d+ tokens, [\d.]+ tok/s; generated 3 tokens, [\d.]+ tok/s")
        assert person.process.wait(20) == 0


def test_earlier_lines_can_be_recalled(decoder_bundle: Bundle) -> None:
    pytest.importorskip("readline")
    with terminal("chat", decoder_bundle.path, "--max-tokens", 3) as person:
        person.until("> ")
        person.type("Hello\n")
        person.until("> ")
        person.type("\x1b[A\n")
        assert "Hello" in person.until("> ")
        person.type("/exit\n")
        person.until("2 answers")


def test_an_interrupt_ends_the_answer_and_not_the_program(decoder_bundle: Bundle) -> None:
    with terminal("chat", decoder_bundle.path) as person:
        person.until("> ")
        # The whole answer fills the context, and would take a minute here.
        person.type("b\n")
        person.until("b\r\n.")
        person.type("\x03")
        person.until("> ")
        person.type("/exit\n")
        assert int(re.search(r"generated (\d+)", person.until(r"generated \d+.*first token"))[1]) < 500
        assert person.process.wait(20) == 0


def test_quit_leaves_too(talk: Ortkit) -> None:
    assert talk("/quit", "Hello") == Finished(0, b"", "")


def test_exit_is_a_message_in_a_pipe(talk: Ortkit, decoder: Decoder) -> None:
    assert talk("exit").out == written(*answers(decoder, "exit"))


@pytest.mark.parametrize("word", ["exit", "quit", "Quit"])
def test_exit_and_quit_leave_on_a_terminal(word: str, monkeypatch: pytest.MonkeyPatch, decoder: Decoder) -> None:
    session = session_of(decoder, interactive=True)
    monkeypatch.setattr(session.chat, "send", None)
    session.handle(word)

    assert session.left


def session_of(
    decoder: Decoder, *, interactive: bool = False, on_full: OnFull = OnFull.ASK, **options: object
) -> ChatSession:
    given = AnswerOptions(**options)
    return ChatSession(
        Chat(decoder),
        options=given,
        sampling=given.sampling(decoder.sampling),
        on_full=on_full,
        interactive=interactive,
    )


def test_options_are_set_during_a_conversation(talk: Ortkit, decoder: Decoder) -> None:
    finished = talk(
        "/set temperature 5", "/set seed=3", "/set top-k 9", "/set lookup off", "/set max_tokens 4", "Hello"
    )
    sampling = Sampling(temperature=5, seed=3, top_k=9)
    expected = Chat(decoder).send("Hello", max_tokens=4, sampling=sampling, lookup=False).answer().text

    assert finished.out == written(expected)
    assert finished.err == "temperature 5\nseed 3\ntop_k 9\nlookup off\nmax_tokens 4\n"


def test_set_shows_the_options(talk: Ortkit, decoder: Decoder) -> None:
    shown = dict(line.split(" ", 1) for line in talk("/set", options=("--stop", "x")).err.splitlines())

    assert shown == {
        "max_tokens": "9",
        "temperature": f"{decoder.sampling.temperature:g}",
        "top_k": f"{decoder.sampling.top_k:g}",
        "top_p": f"{decoder.sampling.top_p:g}",
        "min_p": "0",
        "repetition_penalty": f"{decoder.sampling.repetition_penalty:g}",
        "presence_penalty": "0",
        "frequency_penalty": "0",
        "seed": "not set",
        "stop": "'x'",
        "lookup": "on",
    }
    assert talk("/set seed").err == "seed not set\n"


def test_the_system_message_is_set_during_a_conversation(talk: Ortkit, decoder: Decoder) -> None:
    """Earlier turns stay."""
    finished = talk("/system", "Hello", "/system Be brief.", "/system", "Hm", "/reset", "Hm")
    first, alone = *answers(decoder, "Hello"), *answers(decoder, "Hm", system="Be brief.")
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "Hm"},
    ]
    second = decoder.chat(messages, max_tokens=9).text

    assert finished.out == written(first, second, alone)
    assert finished.err == "no system message is set\nsystem: Be brief.\n"


def test_a_template_without_system_messages_refuses_one_at_once(ortkit: Ortkit, tmp_path: Path) -> None:
    from ortkit.runtime.bundle.manifest import ChatFacts

    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    bundle, _ = write_decoder(tmp_path / "strict", chat=ChatFacts(template + CHATML, {}))
    finished = ortkit("chat", bundle.path, stdin=b"/system Be brief.\nHello")

    assert (finished.code, finished.out) == (2, b"")
    assert finished.err.startswith("error: the model's chat template refuses these messages: no system role\n")


LONG = "dog " * 12
"""A message that fits a few times in a context of 200 tokens."""


def test_a_full_context_drops_the_oldest_turns(ortkit: Ortkit, decoder_bundle: Bundle) -> None:
    """Many contexts of text; the system message stays, and each answer is that to the kept messages."""
    command = ("chat", decoder_bundle.path, "--context", 200, "--max-tokens", 9, "--system", "Be brief.")
    talk = f"{LONG}\n" * 12
    dropping = ortkit(*command, "--on-full", "drop", stdin=talk.encode())
    stopping = ortkit(*command, "--on-full", "stop", stdin=talk.encode())
    asking = ortkit(*command, stdin=talk.encode())

    assert dropping.code == 0
    assert dropping.out.count(b"\n") >= 12
    notes = dropping.err.splitlines()
    assert notes
    assert set(notes) == {"note: dropped the oldest 2 messages, because the context is full"}
    # A pipe cannot be asked.
    assert stopping == asking
    assert (stopping.code, stopping.err.splitlines()[-1]) == (2, "hint: `/reset` starts a new conversation")
    assert stopping.out
    assert stopping.out.splitlines()[0] == dropping.out.splitlines()[0]


def test_the_oldest_turns_are_dropped_as_few_as_needed() -> None:
    said = [("system", "s"), ("user", "aaa"), ("assistant", "bbb"), ("user", "cc"), ("assistant", "d"), ("user", "ee")]
    messages = [Message(*one) for one in said]

    def fits(limit: int) -> str:
        kept = messages_that_fit(messages, lambda some: sum(len(one.content) for one in some), limit)
        return " ".join(one.content for one in kept)

    assert fits(12) == "s aaa bbb cc d ee"
    assert fits(11) == fits(6) == "s cc d ee"
    assert fits(5) == fits(3) == "s ee"
    assert fits(2) == "s aaa bbb cc d ee", "dropping turns does not help"


@pytest.mark.parametrize("drop", [True, False])
def test_a_person_is_asked_whether_turns_are_dropped(
    decoder_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, *, drop: bool
) -> None:
    session = session_of(Decoder(decoder_bundle, context=200), interactive=True, max_tokens=9)
    asked: list[str] = []
    monkeypatch.setattr("click.confirm", lambda text, **_: asked.append(text) or drop)
    while not asked:
        before = session.chat.messages
        with nullcontext() if drop else suppress(InputError):
            session.handle(LONG)

    assert asked == ["The context is full. Drop the oldest 2 messages?"]
    messages = session.chat.messages
    assert messages[: len(before) - 2] == before[2:] if drop else messages[: len(before)] == before


def test_a_terminal_shows_colors_progress_and_the_remaining_context(decoder_bundle: Bundle) -> None:
    with terminal("chat", decoder_bundle.path, "--max-tokens", 3, NO_COLOR="") as person:
        assert "\x1b[32m" in person.until("> ")
        person.type("Hello\n")
        # The model's answer and the dim line after it.
        shown = person.until(r"\((\d+) of (\d+) tokens left\)")
        assert "\x1b[2m(" in shown
        left, context = map(int, re.search(r"\((\d+) of (\d+) tokens left\)", shown).groups())
        assert context == CONTEXT
        assert 0 < left < context - 3
        person.until("> ")
        person.type("exit\n")
        person.until("generated 3 tokens")
        assert person.process.wait(20) == 0


def test_no_color_is_respected(decoder_bundle: Bundle) -> None:
    with terminal("chat", decoder_bundle.path, "--max-tokens", 3, NO_COLOR="1") as person:
        person.until("> ")
        person.type("Hello\n")
        assert "\x1b[2m" not in person.until("tokens left")
        assert "\x1b[32m" not in person.until("> ")
        person.type("quit\n")
        person.until("generated 3 tokens")


def test_the_prefill_of_a_long_prompt_shows_its_progress(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr("ortkit.toolkit.console.progress.HEARTBEAT", 0.05)
    monkeypatch.setattr("ortkit.toolkit.console.progress.REDRAW", 0.01)
    counts = iter([(100, 500), (200, 500), (400, 500), *[(500, 500)] * 1000])
    with prefill_progress(lambda: next(counts)):
        time.sleep(0.3)

    shown = capsys.readouterr().err.split(CLEAR)
    assert shown[1].startswith("prompt: 200 of 500 tokens, ")
    assert shown[1].endswith(" left")
    assert shown[-2:] == ["prompt: 500 of 500 tokens, 0 s left", ""]


def test_a_short_prefill_shows_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with prefill_progress(lambda: (0, 5)):
        pass
    assert capsys.readouterr().err == ""


def test_the_progress_is_that_of_the_cache(decoder: Decoder) -> None:
    stream = decoder.stream("Hello, dog")
    total = decoder.count_tokens("Hello, dog")

    assert prompt_progress(stream) == (0, total)
    next(stream)
    assert prompt_progress(stream) == (total, total)
