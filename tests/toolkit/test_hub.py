"""All outcomes of signing in and asking for a model, with each generation of huggingface_hub."""

from __future__ import annotations

import json
import os
import pty
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import read_terminal
from tests.hub_server import LocalHub
from tests.hub_users import ADA, BOB, EVE, EXPIRED, REVOKED, ROOT, HubUser, error_of

SITE = "https://huggingface.co"


def test_a_public_model_needs_nothing(every_user: HubUser, hub: LocalHub) -> None:
    finished = every_user.run("access", "org/public")

    assert (finished.code, finished.err) == (0, "")
    assert finished.out.decode().splitlines() == [
        "org/public can be downloaded without a token",
        f"  commit   {'c' * 40}",
        "  license  apache-2.0, public",
        "  size     0.3 MB in 5 files needed for an export",
    ]
    assert all(request.authorization is None for request in hub.requests)


def test_a_granted_model(every_user: HubUser) -> None:
    finished = every_user.run("access", "org/gated", HF_TOKEN=ADA)

    assert finished.code == 0
    assert finished.out.decode().splitlines()[0] == (
        "org/gated can be downloaded with the token hf_****0001 from the environment variable `HF_TOKEN`"
    )
    assert finished.err == f"note: `org/gated` is gated, its license is apache-2.0: {SITE}/org/gated has the terms\n"


@pytest.mark.parametrize("token", [REVOKED, EXPIRED])
def test_a_stale_token_does_not_stand_in_the_way_of_a_public_model(any_user: HubUser, token: str) -> None:
    finished = any_user.run("access", "org/public", HF_TOKEN=token)

    assert finished.code == 0
    assert finished.out.decode().startswith("org/public can be downloaded without a token")
    assert finished.err == (
        f"note: the Hub refuses the token hf_****{token[-4:]} from the environment variable `HF_TOKEN`: "
        "it is invalid or has expired; the model is public, so it is downloaded without a token\n"
    )


def test_a_renamed_model(every_user: HubUser) -> None:
    finished = every_user.run("access", "org/old-name")

    assert finished.code == 0
    assert finished.err == "note: `org/old-name` is called `org/public` now\n"


def test_a_gated_model_and_no_token(any_user: HubUser) -> None:
    assert error_of(any_user.run("access", "org/gated")) == (
        3,
        "`org/gated` is gated, and there is no Hugging Face token on this machine",
        f"accept the terms at {SITE}/org/gated, run `ortkit login`, then `ortkit access org/gated` again",
    )


def test_an_implicit_token_can_be_forbidden(any_user: HubUser) -> None:
    assert error_of(any_user.run("access", "org/gated", HF_TOKEN=ADA, HF_HUB_DISABLE_IMPLICIT_TOKEN="1")) == (
        3,
        "`org/gated` needs a token, and `HF_HUB_DISABLE_IMPLICIT_TOKEN` keeps every token from being used",
        "unset it, then run `ortkit access org/gated` again",
    )


def test_the_password_of_a_mirror_is_not_shown(any_user: HubUser) -> None:
    finished = any_user.run("access", "org/public", HF_ENDPOINT="http://me:secret@127.0.0.1:9")

    assert error_of(finished)[:2] == (6, "`127.0.0.1:9` refuses the connection")
    assert "secret" not in finished.err


def test_a_token_that_is_invalid(every_user: HubUser) -> None:
    every_user.write_token(REVOKED)
    file = every_user.token_file
    for model in ("org/gated", "org/private"):
        again = f"ortkit access {model}"
        assert error_of(every_user.run("access", model)) == (
            3,
            f"the Hub refuses the token hf_****0004 from the file `{file}`: it is invalid or has expired",
            f"make a new one at {SITE}/settings/tokens and run `ortkit login`, then run `{again}` again",
        )
    code, _, hint = error_of(every_user.run("access", "org/gated", HF_TOKEN=REVOKED))
    assert code == 3
    assert f"make a new one at {SITE}/settings/tokens and set `HF_TOKEN` to it" in hint


def test_terms_that_are_not_accepted(any_user: HubUser) -> None:
    assert error_of(any_user.run("access", "org/gated", HF_TOKEN=BOB)) == (
        4,
        "access to `org/gated` has not been granted to the token of `bob`",
        f"accept the terms at {SITE}/org/gated, then run `ortkit access org/gated` again",
    )


def test_access_to_what_is_not_a_model(any_user: HubUser) -> None:
    code, message, hint = error_of(any_user.run("access", "nope"))

    assert (code, message) == (5, "`nope` is neither a catalog name nor a Hub id")
    assert hint.endswith("`ortkit models` prints the catalog")


def test_access_that_its_owners_have_not_granted_yet(any_user: HubUser) -> None:
    assert error_of(any_user.run("access", "org/by-hand", HF_TOKEN=BOB)) == (
        4,
        "access to `org/by-hand` has not been granted to `bob` yet: its owners decide on each request",
        f"ask at {SITE}/org/by-hand if you have not; once they have granted it, run `ortkit access org/by-hand` again",
    )


def test_a_fine_grained_token_without_the_scope(any_user: HubUser) -> None:
    assert error_of(any_user.run("access", "org/gated", HF_TOKEN=EVE)) == (
        4,
        "the fine-grained token of `eve` may not read gated repositories, such as `org/gated`",
        (
            "give it `Read access to contents of all public gated repos you can access` at "
            f"{SITE}/settings/tokens, then run `ortkit access org/gated` again"
        ),
    )


@pytest.mark.parametrize("model", ["org/private", "org/nothing"])
def test_a_private_or_missing_model(any_user: HubUser, model: str) -> None:
    assert error_of(any_user.run("access", model)) == (
        5,
        f"`{model}` does not exist, or it is private and there is no token to show",
        f"check the name at {SITE}/{model}; if private, run `ortkit login`, then `ortkit access {model}`",
    )
    assert error_of(any_user.run("access", model, HF_TOKEN=BOB)) == (
        5,
        f"`{model}` does not exist, or it is private and `bob` may not see it",
        f"check the name at {SITE}/{model}, signed in as the user who may",
    )


def test_a_missing_revision(any_user: HubUser) -> None:
    assert error_of(any_user.run("access", "org/public", "--revision", "v9")) == (
        5,
        "`org/public` has no revision `v9`",
        f"its branches and commits are listed at {SITE}/org/public/commits/main",
    )


@pytest.mark.parametrize("name", ["org/-bad-", "org/a--b", "org/" + "x" * 100])
def test_an_id_that_cannot_be_one(any_user: HubUser, name: str) -> None:
    assert error_of(any_user.run("access", name)) == (
        2,
        f"`{name}` cannot be the id of a repository",
        "an id reads `owner/name`",
    )


OFFLINE = "with the model in the cache, `--offline` needs no network"
NO_NETWORK = ("unshare", "--map-root-user", "--net")


def test_a_hub_that_refuses_connections(every_user: HubUser) -> None:
    assert error_of(every_user.run("access", "org/public", HF_ENDPOINT="http://127.0.0.1:9")) == (
        6,
        "`127.0.0.1:9` refuses the connection",
        f"check HF_ENDPOINT and the network; {OFFLINE}",
    )


def test_a_name_that_does_not_resolve(every_user: HubUser) -> None:
    """In an empty network namespace, without a resolver."""
    finished = every_user.run("access", "org/public", HF_ENDPOINT=None, prefix=NO_NETWORK)

    assert error_of(finished) == (
        6,
        "the name `huggingface.co` cannot be resolved",
        f"check the network and its DNS; {OFFLINE}",
    )


def test_the_token_does_not_follow_a_redirection_to_another_host(every_user: HubUser, hub: LocalHub) -> None:
    hub.renamed["org/elsewhere"] = f"http://localhost:{hub.storage.server_port}/api/models/org/public"
    finished = every_user.run("access", "org/elsewhere", HF_TOKEN=ADA)

    assert finished.code == 6
    away = [request for request in hub.requests if request.server == "storage"]
    assert away
    assert all(request.authorization is None for request in away)


def test_a_proxy_that_cannot_be_reached(every_user: HubUser) -> None:
    finished = every_user.run(
        "access", "org/public", HF_ENDPOINT="http://hub.example", http_proxy="http://me:secret@127.0.0.1:9"
    )

    assert error_of(finished) == (
        6,
        "the proxy `127.0.0.1:9` on the way to `hub.example` cannot be used",
        f"correct or unset `http_proxy`; {OFFLINE}",
    )
    assert "secret" not in finished.err


def test_a_certificate_that_is_not_trusted(every_user: HubUser, tmp_path: Path) -> None:
    with tls_server(tmp_path) as port:
        finished = every_user.run("access", "org/public", HF_ENDPOINT=f"https://localhost:{port}")

    assert error_of(finished) == (
        6,
        f"the TLS certificate of `localhost:{port}` is not trusted here",
        "where the network inspects TLS, name its certificate in SSL_CERT_FILE and REQUESTS_CA_BUNDLE",
    )


class tls_server:  # noqa: N801 - used like a function
    """A TLS server with a self-signed certificate."""

    def __init__(self, folder: Path) -> None:
        key, certificate = folder / "key.pem", folder / "certificate.pem"
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "1"]
        subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
        code = f"""
import http.server, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain({str(certificate)!r}, {str(key)!r})
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_port, flush=True)
server.serve_forever()
"""
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def __enter__(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.mark.parametrize(
    ("model", "message", "hint"),
    [
        ("org/429", "answers 429: too many requests", "wait 17 seconds, then try again"),
        ("org/503", "answers 503: it is down or overloaded", "try again later, or use `--offline`"),
        ("org/slow", "did not answer within 2 seconds", f"try again; {OFFLINE}"),
        (
            "org/html",
            "answers with what the Hub would not say",
            "something else may stand there in the Hub's name, such as a proxy's sign-in page; check HF_ENDPOINT",
        ),
    ],
)
def test_a_hub_that_does_not_work(any_user: HubUser, hub: LocalHub, model: str, message: str, hint: str) -> None:
    assert error_of(any_user.run("access", model, HF_HUB_ETAG_TIMEOUT="2")) == (6, f"`{hub.host}` {message}", hint)


@pytest.mark.parametrize("switch", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_mode(every_user: HubUser, hub: LocalHub, switch: str) -> None:
    assert error_of(every_user.run("access", "org/public", **{switch: "1"})) == (
        6,
        f"offline mode is switched on by `{switch}`, so `{hub.host}` was not asked",
        f"unset `{switch}` on a machine with a network; a model in the cache is exported with `--offline`",
    )
    assert not hub.requests


def test_a_mirror_does_not_get_the_token(any_user: HubUser, hub: LocalHub) -> None:
    finished = any_user.run("access", "org/gated", HF_TOKEN=ADA, ORTKIT_TOKEN_HOST=None)

    assert error_of(finished) == (
        3,
        (
            "`org/gated` needs a token, and the one from the environment variable `HF_TOKEN` "
            f"is not sent to `{hub.host}`, which is not the Hub"
        ),
        f"if that host may have it, run `ortkit access org/gated --token-host {hub.host}`",
    )
    assert any_user.run("access", "org/public", HF_TOKEN=ADA, ORTKIT_TOKEN_HOST=None).code == 0
    assert hub.requests
    assert all(request.authorization is None for request in hub.requests)
    assert any_user.run("access", "org/gated", "--token-host", hub.host, HF_TOKEN=ADA, ORTKIT_TOKEN_HOST=None).code == 0
    another = any_user.run("access", "org/gated", HF_TOKEN=ADA, ORTKIT_TOKEN_HOST="another.example")
    assert another.code == 3


@pytest.mark.parametrize(
    "content",
    [
        f"{ADA}",
        f"{ADA}\n",
        f"{ADA}\r\n",
        f"\n\n  {ADA}  \n\n",
        f"\ufeff{ADA}\n",
        f"{ADA}\r\n".encode("utf-16"),
    ],
)
def test_a_token_file_written_by_hand(any_user: HubUser, content: str | bytes) -> None:
    any_user.write_token(content)

    finished = any_user.run("whoami")

    assert (finished.code, finished.err) == (0, "")
    assert finished.out.decode().splitlines() == [
        "user     ada",
        f"token    hf_****0001, from the file `{any_user.token_file}`",
        "kind     read",
    ]


def test_a_token_stored_by_the_hugging_face_cli_is_used(every_user: HubUser, hub: LocalHub) -> None:
    code = f"import huggingface_hub; huggingface_hub.login(token={ADA!r})"
    assert every_user.run_code(code).returncode == 0

    assert every_user.run("whoami").out.startswith(b"user     ada\n")
    assert every_user.run("access", "org/gated").code == 0
    assert hub.requests


@pytest.mark.parametrize("variable", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"])
def test_a_token_in_the_environment_takes_precedence(any_user: HubUser, variable: str) -> None:
    any_user.write_token(BOB)

    finished = any_user.run("whoami", **{variable: f" {ADA}\n"})

    assert finished.out.decode().splitlines()[:2] == [
        "user     ada",
        f"token    hf_****0001, from the environment variable `{variable}`",
    ]


def test_the_token_file_may_stand_elsewhere(any_user: HubUser, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for name, path in {"HF_TOKEN_PATH": "elsewhere/my-token", "HF_HOME": "elsewhere/token"}.items():
        (tmp_path / path).write_text(ADA)
        (tmp_path / path).chmod(0o600)
        value = tmp_path / path if name == "HF_TOKEN_PATH" else tmp_path / "elsewhere"
        assert f"from the file `{tmp_path / path}`".encode() in any_user.run("whoami", **{name: str(value)}).out


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("hf_two words", "holds characters that no token has"),
        ("hf_ümlaut", "holds characters that no token has"),
        ("hf_\u0001", "holds characters that no token has"),
        (f'"{ADA}"', "stands in quotation marks"),
        (f"'{ADA}'\n", "stands in quotation marks"),
        (f"HF_TOKEN={ADA}", "has more before it, such as a name"),
        (f"export HF_TOKEN='{ADA}'\n", "has more before it, such as a name"),
        (f"token: {ADA}", "has more before it, such as a name"),
        (f"Bearer {ADA}", "has more before it, such as a name"),
        (json.dumps({"token": ADA}), "has more before it, such as a name"),
        ("hf_...", "is the placeholder of some instructions"),
        ("hf_xxxxxxxxxx", "is the placeholder of some instructions"),
        ("<your token>", "is the placeholder of some instructions"),
        ("$HF_TOKEN", "is the placeholder of some instructions"),
    ],
)
def test_a_token_that_cannot_be_one(user: HubUser, hub: LocalHub, content: str, problem: str) -> None:
    """It is not sent, and a public model does not need one."""
    user.write_token(content)

    assert error_of(user.run("whoami")) == (
        3,
        f"the token from the file `{user.token_file}` {problem}",
        "write the token alone, as copied from the site, or run `ortkit login`",
    )
    assert not hub.requests


def test_a_token_that_cannot_be_one_does_not_stand_in_the_way_of_a_public_model(any_user: HubUser) -> None:
    any_user.write_token(f'"{ADA}"')
    problem = f"the token from the file `{any_user.token_file}` stands in quotation marks"

    finished = any_user.run("access", "org/public")

    assert (finished.code, finished.err) == (0, f"note: {problem}; no token is sent\n")
    for model in ("org/gated", "org/private"):
        assert error_of(any_user.run("access", model))[:2] == (3, problem)
    in_variable = error_of(any_user.run("access", "org/gated", HF_TOKEN="hf_..."))
    assert in_variable == (
        3,
        "the token from the environment variable `HF_TOKEN` is the placeholder of some instructions",
        "set `HF_TOKEN` to the token alone, as copied from the site",
    )


def test_a_token_file_that_is_empty_a_folder_or_behind_a_file(user: HubUser, tmp_path: Path) -> None:
    user.write_token(" \n")
    empty = f"the token file `{user.token_file}` is empty, and there is no other token on this machine"
    assert error_of(user.run("whoami")) == (3, empty, "run `ortkit login`")
    assert error_of(user.run("access", "org/gated"))[1] == f"`org/gated` is gated, and {empty}"
    user.token_file.unlink()
    user.token_file.mkdir()
    assert error_of(user.run("whoami")) == (
        3,
        f"`{user.token_file}` is a folder, and the token is kept in a file of that name",
        f"remove it with `rmdir {user.token_file}`, or set HF_TOKEN_PATH to a file; then run `ortkit login`",
    )
    (tmp_path / "a-file").write_text("")
    missing = user.run("whoami", HOME=str(tmp_path / "a-file"))
    assert error_of(missing) == (3, "there is no Hugging Face token on this machine", "run `ortkit login`")


def test_a_token_typed_in_the_wrong_place_is_not_shown(user: HubUser, hub: LocalHub) -> None:
    """`run` looks for it in the output."""
    assert error_of(user.run("login", ADA)) == (
        2,
        "a token cannot be given on the command line, where other users and the shell history see it",
        (
            "run `ortkit login` alone, or pipe the token in with `--token-stdin`; if you typed a token, "
            f"replace it at {SITE}/settings/tokens"
        ),
    )
    for arguments in (
        ["login", "--token", ADA],
        ["login", f"--token={ADA}"],
        ["login", f"--token-stdin={ADA}"],
        ["whoami", ADA],
        ["logout", ADA],
        ["models", ADA],
        [ADA],
        ["access", ADA],
        ["access", f"org/{ADA}"],
        ["access", "org/public", "--revision", ADA],
    ):
        assert user.run(*arguments).code in (2, 5), arguments
    assert all(request.authorization is None for request in hub.requests)


def test_a_fine_grained_token_is_described(any_user: HubUser) -> None:
    assert any_user.run("whoami", HF_TOKEN=EVE).out.decode().splitlines() == [
        "user     eve",
        "token    hf_****0003, from the environment variable `HF_TOKEN`",
        "kind     fineGrained",
        "gated    may not read gated repositories",
        "scope    eve: repo.content.read",
    ]


def test_a_token_file_that_others_can_read(any_user: HubUser) -> None:
    any_user.write_token(ADA, mode=0o644)
    warning = f"others on this machine can read `{any_user.token_file}`: run `chmod 600 {any_user.token_file}`"

    assert any_user.run("whoami").err == f"warning: {warning}\n"
    assert any_user.run("access", "org/public").err == "", "it is not repeated with every command"


def test_whoami_without_a_token(any_user: HubUser) -> None:
    assert error_of(any_user.run("whoami")) == (
        3,
        "there is no Hugging Face token on this machine",
        "run `ortkit login`",
    )


def test_login_from_a_pipe_stores_the_token_for_its_owner_only(any_user: HubUser) -> None:
    finished = any_user.run("login", "--token-stdin", stdin=f"{ADA}\n".encode())

    assert (finished.code, finished.err) == (0, "")
    assert finished.out.decode() == f"signed in as ada; the token hf_****0001 is in {any_user.token_file}\n"
    assert any_user.token_file.read_text() == ADA
    assert stat.S_IMODE(any_user.token_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(any_user.token_file.parent.stat().st_mode) == 0o700
    assert [path.name for path in any_user.token_file.parent.iterdir()] == ["token"]


def test_login_leaves_a_shared_folder_as_it_is(any_user: HubUser, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o755)

    finished = any_user.run("login", "--token-stdin", stdin=ADA.encode(), HF_TOKEN_PATH=str(shared / "token"))

    assert finished.code == 0
    assert stat.S_IMODE(shared.stat().st_mode) == 0o755
    assert stat.S_IMODE((shared / "token").stat().st_mode) == 0o600


def test_login_warns_of_a_variable_with_precedence(any_user: HubUser) -> None:
    finished = any_user.run("login", "--token-stdin", stdin=ADA.encode(), HF_TOKEN=BOB)

    assert (
        finished.err == "warning: the environment variable `HF_TOKEN` is set and takes precedence over the token file\n"
    )


def test_a_token_that_the_hub_refuses_is_not_stored(any_user: HubUser) -> None:
    any_user.write_token(ADA)

    code, message, _ = error_of(any_user.run("login", "--token-stdin", stdin=REVOKED.encode()))

    assert (code, message) == (
        3,
        "the Hub refuses the token hf_****0004 from your input: it is invalid or has expired",
    )
    assert any_user.token_file.read_text() == ADA


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", ""),
        (b"\n", ""),
        (b"two words", ": it holds characters that no token has"),
        ("ümlaut".encode(), ": it holds characters that no token has"),
        (b"\xff\xfe", ": it holds characters that no token has"),
        (b"'hf_abcdefghijkl'", ": it stands in quotation marks"),
        (b"HF_TOKEN=hf_abcdefghijkl", ": it has more before it, such as a name"),
        (b"hf_...", ": it is the placeholder of some instructions"),
    ],
)
def test_login_with_an_invalid_token(user: HubUser, hub: LocalHub, text: bytes, problem: str) -> None:
    assert error_of(user.run("login", "--token-stdin", stdin=text)) == (
        2,
        f"that is not a token{problem}",
        f"copy one from {SITE}/settings/tokens; it begins with `hf_`",
    )
    assert not hub.requests


def test_login_without_a_terminal(user: HubUser) -> None:
    assert error_of(user.run("login")) == (
        2,
        "stdin is not a terminal, so ortkit cannot ask for a token",
        "pipe it in with `--token-stdin`",
    )


def test_login_is_not_sent_to_a_mirror(user: HubUser, hub: LocalHub) -> None:
    for command in ("login", "whoami"):
        arguments = [command, "--token-stdin"] if command == "login" else [command]
        finished = user.run(*arguments, stdin=ADA.encode(), HF_TOKEN=ADA, ORTKIT_TOKEN_HOST=None)
        assert error_of(finished) == (
            3,
            f"the token is not sent to `{hub.host}`, which is not the Hugging Face Hub",
            f"if you trust that host with it, add `--token-host {hub.host}`",
        )
    assert not hub.requests


def test_a_token_file_that_cannot_be_written(user: HubUser) -> None:
    user.token_file.parent.parent.mkdir(parents=True)
    user.token_file.parent.write_text("in the way")

    code, message, _ = error_of(user.run("login", "--token-stdin", stdin=ADA.encode()))

    assert code == 1
    assert message.startswith(f"the token cannot be written to `{user.token_file}`: ")


def test_login_on_a_terminal_does_not_show_what_is_typed(user: HubUser) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "ortkit", "login"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=user.environment,
        start_new_session=True,
    )
    os.close(theirs)
    shown = b""
    typed = False
    while block := read_terminal(ours):
        shown += block
        if b"Token (not shown):" in shown and not typed:
            os.write(ours, f"{ADA}\n".encode())
            typed = True
    os.close(ours)

    assert process.wait() == 0, shown
    assert ADA.encode() not in shown
    assert b"signed in as ada; the token hf_****0001 is in" in shown


def test_logout_removes_the_file_and_lists_remaining_tokens(any_user: HubUser) -> None:
    any_user.write_token(ADA)
    stored = any_user.token_file.with_name("stored_tokens")
    stored.write_text("[name]\nhf_token = x\n")

    finished = any_user.run("logout", HF_TOKEN=BOB)

    assert finished.out.decode() == f"removed {any_user.token_file}\n"
    assert finished.err.splitlines() == [
        "warning: the environment variable `HF_TOKEN` is still set: `unset HF_TOKEN`",
        f"warning: named tokens of `hf auth login` remain in `{stored}`",
    ]
    assert not any_user.token_file.exists()
    stored.unlink()
    assert any_user.run("logout").out == b"no token is stored\n"


KILLED_LOGIN = """
import os, signal
import ortkit.exporters.hub.token as token
token.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
token.store_token("{}")
"""


def test_files_of_a_killed_login_are_removed(user: HubUser) -> None:
    def kill() -> list[Path]:
        killed = subprocess.run([sys.executable, "-c", KILLED_LOGIN.format(BOB)], env=user.environment, check=False)
        assert killed.returncode == -signal.SIGKILL
        return [path for path in user.token_file.parent.iterdir() if path.is_file()]

    (left,) = kill()
    assert left.read_text() == BOB
    old = user.token_file.with_name(".token.4711")
    old.write_text(BOB)
    (user.token_file.with_name(".token.lock")).write_text("another tool's")

    assert user.run("logout").out.decode().splitlines() == [f"removed {old}", f"removed {left}"]
    kill()
    assert user.run("login", "--token-stdin", stdin=ADA.encode()).code == 0
    assert sorted(path.name for path in user.token_file.parent.iterdir()) == [".token.lock", "token"]
    assert user.token_file.read_text() == ADA


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"name": None},
        {"name": ""},
        {"name": 3},
        [],
        "ada",
        None,
        {"name": "ada", "auth": "x"},
        {"name": "ada", "auth": {"accessToken": [1]}},
        {"name": "ada", "auth": {"accessToken": {"fineGrained": {"scoped": {"a": 1}}}}},
        {"name": "ada", "auth": {"accessToken": {"fineGrained": {"scoped": [1]}}}},
        {"name": "ada", "auth": {"accessToken": {"fineGrained": {"scoped": [{"permissions": 3}]}}}},
    ],
)
def test_an_account_of_another_form(user: HubUser, hub: LocalHub, answer: object) -> None:
    """The token is not stored on the word of a server that is not the Hub."""
    hub.answers = {"/api/whoami-v2": json.dumps(answer).encode()}

    assert error_of(user.run("login", "--token-stdin", stdin=ADA.encode()))[:2] == (
        6,
        f"`{hub.host}` answers with what the Hub would not say",
    )
    assert not user.token_file.exists()


def test_the_name_of_an_account_is_shown_without_escape_sequences(user: HubUser, hub: LocalHub) -> None:
    details = {"role": "\x1b[31m", "fineGrained": {"scoped": [{"entity": {"name": "\x1b[2J"}, "permissions": ["\n"]}]}}
    hub.answers = {"/api/whoami-v2": json.dumps({"name": "a\x1b]0;x\x07", "auth": {"accessToken": details}}).encode()}

    finished = user.run("whoami", HF_TOKEN=ADA)

    assert finished.code == 0
    assert b"\x1b" not in finished.out
    assert finished.out.decode().splitlines()[0] == "user     a\\x1b]0;x\\x07"


def test_a_private_model_is_not_called_public(any_user: HubUser) -> None:
    assert b"  license  apache-2.0, private\n" in any_user.run("access", "org/private", HF_TOKEN=ADA).out


def test_login_with_a_mirror_does_not_ask_for_a_token_that_it_would_not_send(user: HubUser, hub: LocalHub) -> None:
    finished = user.run("login", stdin=b"", ORTKIT_TOKEN_HOST=None)

    assert error_of(finished)[1] == f"the token is not sent to `{hub.host}`, which is not the Hugging Face Hub"


def test_no_log_shows_a_token(every_user: HubUser) -> None:
    """`run` looks for secrets in the output, here with all debug output of the libraries."""
    for command in (["whoami"], ["access", "org/gated"], ["access", "org/by-hand"]):
        finished = every_user.run(*command, HF_TOKEN=ADA, HF_DEBUG="1", HF_HUB_VERBOSITY="debug", ORTKIT_TRACEBACK="1")
        assert finished.code == 0


def test_no_crash_report_shows_a_token(any_user: HubUser) -> None:
    code = """
import sys
import ortkit.exporters.hub.access
def broken(info, asked, token, notes):
    raise ZeroDivisionError("a bug while a token is at hand")
ortkit.exporters.hub.access.granted = broken
sys.argv = ["ortkit", "access", "org/gated"]
import ortkit.__main__
ortkit.__main__.main()
"""
    finished = any_user.run_code(code, HF_TOKEN=ADA, ORTKIT_TRACEBACK="1")

    assert finished.returncode == 1
    assert b"Traceback" in finished.stderr
    assert b"internal error: ZeroDivisionError: a bug while a token is at hand" in finished.stderr
    assert ADA.encode() not in finished.stdout + finished.stderr


def test_the_local_hub_is_there_to_try_by_hand(tmp_path: Path) -> None:
    script = subprocess.Popen(
        [sys.executable, "-u", "-m", "tests.hub_server"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert script.stdout is not None
        settings = dict(pair.split("=") for pair in script.stdout.readline().split()[1:])
        home = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "HF_TOKEN": "hf_adas_token_0001"}
        command = [sys.executable, "-m", "ortkit", "access", "gates/manual"]
        finished = subprocess.run(command, cwd=ROOT, env=home | settings, capture_output=True, text=True, check=False)
    finally:
        script.kill()
        script.communicate()

    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith("gates/manual can be downloaded with the token hf_****0001")
