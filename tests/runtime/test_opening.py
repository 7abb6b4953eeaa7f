from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import pytest

from runtime import Bundle, BundleError, Decoder, opening
from runtime.bundle import GRAPH, GRAPH_DATA, TOKENIZER
from runtime.opening import Opening, at_once
from tests.decoders import write_decoder


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A decoder whose weights lie beside its graph, as exports leave them."""
    return write_decoder(tmp_path_factory.mktemp("decoders") / "beside", weights_beside=True)[0]


def with_changed_byte(bundle: Bundle, target: Path, name: str) -> Path:
    folder = target / "changed"
    shutil.copytree(bundle.path, folder)
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    return folder


def refusal(path: Path) -> BundleError:
    with pytest.raises(BundleError) as caught:
        Decoder(path)
    return caught.value


def test_it_decodes_as_with_its_weights_in_the_graph(beside: Bundle, decoder: Decoder) -> None:
    assert set(beside.manifest.files) == {GRAPH, GRAPH_DATA, TOKENIZER}

    found, expected = (one.steps("The quick", max_tokens=9) for one in (Decoder(beside.path, threads=1), decoder))
    assert list(found) == list(expected)


@pytest.mark.parametrize("name", [GRAPH, GRAPH_DATA, TOKENIZER])
def test_a_changed_byte_is_told_as_when_all_is_checked_first(beside: Bundle, tmp_path: Path, name: str) -> None:
    folder = with_changed_byte(beside, tmp_path, name)
    with pytest.raises(BundleError) as expected:
        Bundle.open(folder)

    found = refusal(folder)

    assert f"`{name}` in the bundle `{folder}` was changed: its sha256 is" in found.message
    assert (found.message, found.hint) == (expected.value.message, expected.value.hint)


@pytest.mark.parametrize("name", [GRAPH, TOKENIZER])
def test_no_library_reads_what_was_changed(
    beside: Bundle, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    monkeypatch.setattr("runtime.opening.shared_session", lambda *_, **__: read.append(GRAPH))
    monkeypatch.setattr("runtime.decoder.open_tokenizer", lambda _: read.append(TOKENIZER))

    assert "was changed" in refusal(with_changed_byte(beside, tmp_path, name)).message
    assert not read


def test_changed_weights_are_told_before_what_onnxruntime_says_of_them(
    beside: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise BundleError("onnxruntime cannot open it")

    monkeypatch.setattr("runtime.opening.shared_session", failing)

    assert refusal(beside.path).message == "onnxruntime cannot open it"
    assert f"`{GRAPH_DATA}` in the bundle" in refusal(with_changed_byte(beside, tmp_path, GRAPH_DATA)).message


def test_weights_are_hashed_while_the_graph_is_prepared(beside: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = threading.Event()
    check, shared_session = Bundle.check_hashes, opening.shared_session

    def checking(bundle: Bundle, names: list[str]) -> None:
        names = list(names)
        check(bundle, names)
        if GRAPH_DATA in names:
            hashed.set()

    def waiting(*arguments: object, **options: object) -> object:
        assert hashed.wait(30), "the session waits for the weights, and they for it"
        return shared_session(*arguments, **options)

    monkeypatch.setattr(Bundle, "check_hashes", checking)
    monkeypatch.setattr("runtime.opening.shared_session", waiting)

    assert Decoder(beside.path).generate("The", max_tokens=2).text


def test_a_bundle_that_was_checked_is_not_checked_again(beside: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Bundle.open(beside.path)
    monkeypatch.setattr("runtime.bundle.sha256_of", lambda _: pytest.fail("it was checked"))

    assert Opening(opened).bundle is opened
    assert Decoder(opened, threads=1).generate("The", max_tokens=2).text


def test_both_happen_at_once() -> None:
    meeting = threading.Barrier(2, timeout=30)

    assert all(number in (0, 1) for number in at_once(meeting.wait, meeting.wait))


def test_the_second_begins_before() -> None:
    begun: list[int] = []

    assert at_once(lambda: list(begun), lambda: begun.append(1), head_start=30)[0] == [1]


def test_the_first_error_is_that_of_the_first_and_nothing_is_left_running() -> None:
    def fail(error: str, seconds: float = 0) -> None:
        time.sleep(seconds)
        raise ValueError(error)

    threads = threading.active_count()
    with pytest.raises(ValueError, match="first"):
        at_once(lambda: fail("first", 0.05), lambda: fail("second"))
    with pytest.raises(ValueError, match="first"):
        at_once(lambda: fail("first"), lambda: time.sleep(0.05))
    with pytest.raises(ValueError, match="second"):
        at_once(lambda: None, lambda: fail("second", 0.05))

    assert threading.active_count() == threads
