"""The configuration file of `ortkit serve`."""

from __future__ import annotations

from pathlib import Path

import pytest

from ortkit import InputError, NotFoundError
from ortkit.toolkit.server.settings import ServerSettings, SettingsFile, is_loopback, read_settings


def written(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "serve.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(0o644)
    return path


def test_all_kinds_of_settings(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
        host = "::1"
        port = 9000
        api_keys = "keys"
        unix_socket = "/run/ortkit/socket"
        cors_origins = ["https://example.org"]
        page = false
        max_memory = "2G"
        max_body = 4096
        request_seconds = 30
        [bundles]
        small = "SmolLM2-135M-Instruct-int4"
        [indexes]
        manuals = "manuals.index"
        """,
    )

    found = read_settings(path)

    assert found.settings == {
        "host": "::1",
        "port": 9000,
        "api_keys": tmp_path / "keys",
        "unix_socket": Path("/run/ortkit/socket"),
        "cors_origins": ("https://example.org",),
        "page": False,
        "max_memory": 2 << 30,
        "max_body": 4096,
        "request_seconds": 30.0,
    }
    assert found.bundles == (("small", "SmolLM2-135M-Instruct-int4"),)
    assert found.indexes == (("manuals", str(tmp_path / "manuals.index")),)
    assert ServerSettings(**found.settings).max_memory == 2 << 30
    assert read_settings(written(tmp_path, 'bundles = ["a", "b/c"]')) == SettingsFile({}, ((None, "a"), (None, "b/c")))
    assert read_settings(written(tmp_path, 'indexes = ["/a"]')).indexes == ((None, "/a"),)


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        ("max_memry = 1", "has the unknown setting `max_memry`", "did you mean `max_memory`"),
        ("zzz = 1", "has the unknown setting `zzz`", "known: host, port, unix_socket"),
        ('port = "80"', "is not valid: `port` must be an integer, not `80`", None),
        ("port = true", "is not valid: `port` must be an integer, not `True`", None),
        ("page = 1", "is not valid: `page` must be true or false, not `1`", None),
        ('max_memory = "lots"', "is not valid: `max_memory` must be a size such as 500M or 4G, not `lots`", None),
        ("max_body = -1", "is not valid: `max_body` must be a size", None),
        ('idle_seconds = "1"', "is not valid: `idle_seconds` must be a number of seconds", None),
        ('allowed_hosts = "a"', "is not valid: `allowed_hosts` must be a list of strings, not `a`", None),
        ("allowed_hosts = [1]", "is not valid: `allowed_hosts` must be a list of strings, not list", None),
        ("bundles = [1]", "is not valid: `bundles` must be a list of bundles, or a table of name = bundle", None),
        ("indexes = 1", "is not valid: `indexes` must be a list of indexes, or a table of name = index", None),
        ('indxes = ["a"]', "has the unknown setting `indxes`", "did you mean `indexes`"),
        ("host = ", "is not valid TOML", None),
        (b"\xff", "is not valid TOML", None),
        (b"#" * ((1 << 20) + 1), "has more than 1048576 bytes", None),
    ],
)
def test_files_that_are_refused(tmp_path: Path, content: str | bytes, message: str, hint: str | None) -> None:
    path = written(tmp_path, content)

    with pytest.raises(InputError) as caught:
        read_settings(path)

    assert caught.value.message.startswith(f"the configuration `{path}` {message}")
    assert hint is None or hint in (caught.value.hint or "")


def test_files_of_others_and_missing_ones(tmp_path: Path) -> None:
    path = written(tmp_path, "port = 1")
    path.chmod(0o666)
    with pytest.raises(InputError, match="other users can change it"):
        read_settings(path)
    with pytest.raises(NotFoundError, match="there is no configuration"):
        read_settings(tmp_path / "none.toml")


def test_values_out_of_range() -> None:
    with pytest.raises(InputError, match="`slots` must be from 1 to 256, not 0"):
        ServerSettings(slots=0)
    with pytest.raises(InputError, match=r"`request_seconds` must be from 0\.1 to 86400, not 0\.0"):
        ServerSettings(request_seconds=0.0)


def test_which_addresses_are_public() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "192.168.1.2", "example.org")] == [False] * 4
    assert ServerSettings(host="0.0.0.0").is_public
    assert not ServerSettings(host="0.0.0.0", unix_socket=Path("/run/socket")).is_public
