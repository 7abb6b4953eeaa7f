"""A package index on the loopback (the simple repository API, PEP 503), and tiny wheels for it."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

USER, PASSWORD = "ada", "s3cret%40"


@dataclass(frozen=True)
class TinyWheel:
    """A wheel with one module."""

    name: str
    version: str
    file: str
    content: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


def tiny_wheel(name: str, version: str = "1.0", tag: str = "py3-none-any", code: str = "") -> TinyWheel:
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    files = {
        f"{module}.py": code,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: hub\n",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    rows = [f"{path},sha256={_digest(text)},{len(text)}" for path, text in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,", ""])
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path, text in files.items():
            archive.writestr(zipfile.ZipInfo(path), text)
    return TinyWheel(name, version, f"{module}-{version}-{tag}.whl", packed.getvalue())


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


def write_lock(path: Path, wheels: list[TinyWheel], markers: Mapping[str, str] | None = None) -> None:
    """Write a lock of these wheels, several of which may be of one package; `markers` are by the packages' names."""
    lines = ['lock-version = "1.0"', 'extras = ["cpu", "cuda", "coreml", "sign"]', 'created-by = "tests"']
    for name in sorted({wheel.name for wheel in wheels}):
        own = [wheel for wheel in wheels if wheel.name == name]
        lines += ["[[packages]]", f'name = "{name}"', f'version = "{own[0].version}"']
        if markers is not None and name in markers:
            lines.append(f"marker = {json.dumps(markers[name])}")
        entries = [
            f'{{ path = "{wheel.file}", size = {len(wheel.content)}, hashes = {{ sha256 = "{wheel.sha256}" }} }}'
            for wheel in own
        ]
        lines.append(f"wheels = [{', '.join(entries)}]")
    path.write_text("\n".join(lines), encoding="utf-8")


class PackageIndex:
    """Serves wheels at `url` until it is closed; only to USER with PASSWORD."""

    def __init__(self, wheels: list[TinyWheel]) -> None:
        self.files = {wheel.file: wheel.content for wheel in wheels}
        """File name -> what is served under it."""
        self.packages = {wheel.file: wheel.name for wheel in wheels}
        self.fetched: list[str] = []
        """Names of the files that were fetched."""
        self.unavailable: set[str] = set()
        """Names of the files that are answered with 503 once."""
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://{USER}:{PASSWORD}@127.0.0.1:{self.server.server_port}/simple"

    def rename(self, old: str, new: str) -> None:
        """Serve a file under another name."""
        self.files[new] = self.files.pop(old)
        self.packages[new] = self.packages.pop(old)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, path: str) -> bytes | None:
        kind, _, name = path.strip("/").partition("/")
        if kind == "files" and name in self.files:
            self.fetched.append(name)
            return self.files[name]
        listed = [file for file, package in self.packages.items() if kind == "simple" and package == name]
        links = "".join(f'<a href="/files/{file}">{file}</a>' for file in listed)
        return f"<!DOCTYPE html><html><body>{links}</body></html>".encode() if listed else None


def _handler(index: PackageIndex) -> type[BaseHTTPRequestHandler]:
    wanted = base64.b64encode(f"{USER}:{PASSWORD.replace('%40', '@')}".encode()).decode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            allowed = self.headers.get("Authorization") == f"Basic {wanted}"
            name = self.path.rpartition("/")[2]
            unavailable = allowed and name in index.unavailable
            index.unavailable.discard(name)
            content = index.answer(self.path) if allowed and not unavailable else b""
            self.send_response(401 if not allowed else 503 if unavailable else 404 if content is None else 200)
            self.send_header("Content-Type", "text/html" if self.path.startswith("/simple") else "application/zip")
            self.send_header("Content-Length", str(len(content or b"")))
            if not allowed:
                self.send_header("WWW-Authenticate", "Basic")
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *arguments: object) -> None: ...

    return Handler
