"""Files of API keys: what they may have, who may read them, and that they are replaced as a whole."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from ortkit import InputError, NotFoundError
from ortkit.toolkit.server.operation.api_keys import ApiKeys

KEY, OTHER = "a" * 16, "sk-" + "b" * 40
DIGEST = hashlib.sha256(OTHER.encode()).hexdigest()


def written(path: Path, content: str | bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(mode)
    return path


def test_names_of_keys(tmp_path: Path) -> None:
    keys = ApiKeys(written(tmp_path / "keys", f"# line 4\n\n{KEY}\nops@site: sha256:{DIGEST}\n"))

    assert len(keys) == 2
    assert (keys.name_of(KEY), keys.name_of(OTHER)) == ("key-1", "ops@site")
    for wrong in (None, "", DIGEST, f"sha256:{DIGEST}", KEY[:-1], f"{KEY} ", "ä" * 16, "x" * 10_000):
        assert keys.name_of(wrong) is None


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        ("", "the file of API keys `{path}` has no keys", "one a line, `name: KEY`; `openssl rand -hex 32` makes one"),
        ("# none\n", "the file of API keys `{path}` has no keys", None),
        (
            f"{KEY}\na: short\n",
            "line 2 of `{path}` is not an API key: a key has 16 to 512 ASCII characters without spaces",
            "`openssl rand -hex 32` makes one",
        ),
        ("one two three four", "line 1 of `{path}` is not an API key: a key has 16", None),
        ("a: sha256:abcd", "line 1 of `{path}` is not an API key: `sha256:` must be followed by 64", None),
        (f"my key: {KEY}", "line 1 of `{path}` is not an API key: its name must have letters", "a line is `name: KEY`"),
        (f"a: {KEY}\na: {OTHER}", "the file of API keys `{path}` has two keys of the name `a`", None),
        (b"\xff\xfe", "the file of API keys `{path}` is not UTF-8", None),
        ("#" * (1 << 20) + "#", "the file of API keys `{path}` has more than 1048576 bytes", None),
    ],
)
def test_files_that_are_refused(tmp_path: Path, content: str | bytes, message: str, hint: str | None) -> None:
    path = written(tmp_path / "keys", content)

    with pytest.raises(InputError) as caught:
        ApiKeys(path)

    assert caught.value.message.startswith(message.format(path=path))
    assert hint is None or (caught.value.hint or "").startswith(hint)
    for secret in (KEY, OTHER, "short", "two three"):
        assert secret not in str(caught.value)


def test_plain_keys_are_for_the_owner_alone(tmp_path: Path) -> None:
    path = written(tmp_path / "keys", f"a: {KEY}\n", 0o640)
    with pytest.raises(InputError, match=r"is readable for other users, and has keys that are not hashed") as caught:
        ApiKeys(path)
    assert caught.value.hint == (f"`chmod 600 {path}`, or write `name: sha256:HEX` (`printf %s KEY | sha256sum`)")
    assert len(ApiKeys(written(path, f"a: sha256:{DIGEST}\n", 0o644))) == 1
    path.chmod(0o622)
    with pytest.raises(InputError, match="other users can change it"):
        ApiKeys(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no file of API keys"):
        ApiKeys(tmp_path / "none")


def test_a_broken_file_keeps_the_old_keys(tmp_path: Path) -> None:
    path = written(tmp_path / "keys", f"a: {KEY}\n")
    keys = ApiKeys(path)
    assert not keys.has_changed()
    written(path, "broken")
    assert keys.has_changed()

    with pytest.raises(InputError):
        keys.reload()

    assert keys.name_of(KEY) == "a"
    assert not keys.has_changed(), "it is reported once"
    path.unlink()
    assert keys.has_changed()
    with pytest.raises(NotFoundError):
        keys.reload()
    written(path, f"b: {OTHER}\n")
    assert keys.has_changed()
    assert keys.reload() == 1
    assert (keys.name_of(KEY), keys.name_of(OTHER)) == (None, "b")
