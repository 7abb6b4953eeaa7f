from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ortkit import Bundle, BundleError, Decoder
from ortkit.runtime.bundle.bundle import GRAPH, GRAPH_DATA, TOKENIZER
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
def test_a_changed_byte_is_refused(beside: Bundle, tmp_path: Path, name: str) -> None:
    folder = with_changed_byte(beside, tmp_path, name)
    found = refusal(folder)

    assert f"`{name}` in the bundle `{folder}` was changed: its sha256 is" in found.message
    assert found.exit_code == 7


@pytest.mark.parametrize("name", [GRAPH, GRAPH_DATA, TOKENIZER])
def test_no_library_reads_a_modified_file(
    beside: Bundle, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    monkeypatch.setattr("ortkit.runtime.decoder.decoder.shared_session", lambda *_, **__: read.append(GRAPH))
    monkeypatch.setattr("ortkit.runtime.decoder.decoder.open_tokenizer", lambda _: read.append(TOKENIZER))

    assert "was changed" in refusal(with_changed_byte(beside, tmp_path, name)).message
    assert not read


def test_a_bundle_that_was_checked_is_not_checked_again(beside: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Bundle.open(beside.path)
    monkeypatch.setattr("ortkit.runtime.bundle.bundle.sha256_of", lambda _: pytest.fail("it was checked"))

    decoder = Decoder(opened, threads=1)

    assert decoder.bundle is opened
    assert decoder.generate("The", max_tokens=2).text
