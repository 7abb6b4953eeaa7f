"""Requests that schemathesis makes from `/openapi.json`: those it allows, and those it does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.toolkit.server.conftest import LocalServer

SECONDS = 60
"""Of schemathesis: what is made of one schema after another, and random requests until then."""
EXAMPLES = 60
"""Random requests of each path at most."""


def fetched(url: str) -> bytes:
    parts = urlsplit(url)
    connection = HTTPConnection(parts.netloc, timeout=30)
    try:
        connection.request("GET", parts.path)
        response = connection.getresponse()
        assert response.status == 200
        return response.read()
    finally:
        connection.close()


@pytest.mark.slow
def test_schemathesis_finds_nothing(server: LocalServer, tmp_path: Path) -> None:
    document = json.loads(fetched(f"{server.url}/openapi.json"))
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json", "--no-color"]
    command += ["--max-time", str(SECONDS), "--max-examples", str(EXAMPLES), "--request-timeout", "30"]
    command += ["--continue-on-failure", "--seed", "22", "--generation-database", "none", "--warnings", "off"]
    command += ["--report-junit-path", str(report)]

    # Where it finds a configuration file, it would read that.
    found = subprocess.run(
        command,
        cwd=tmp_path,
        env=dict(os.environ, COLUMNS="120"),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )

    assert found.returncode == 0, found.stdout[-20_000:] + found.stderr
    assert "No issues found" in found.stdout, found.stdout[-2_000:]
    # None of the paths may be left out by schemathesis without a word.
    tested = report.read_text(encoding="utf-8")
    missing = [
        f"{method.upper()} {path}"
        for path, methods in document["paths"].items()
        for method in methods
        if f"{method.upper()} {path}" not in tested
    ]
    assert document["paths"]
    assert missing == ["GET /openapi.json"], "it leaves out the path that it has fetched the document from"
    assert fetched(f"{server.url}/health")
