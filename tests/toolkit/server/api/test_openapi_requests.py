"""Requests that schemathesis makes from `/openapi.json`: those it allows, and those it does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit
from xml.etree import ElementTree as ET

import pytest

from tests.toolkit.server.conftest import LocalServer

EXAMPLES = 20
"""Random requests of each path."""


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


def without_paths(schema: object) -> object:
    """A schema without the fields `paths`, which test_search.py has.

    Schemathesis takes minutes to make texts that match the regular expression of their patterns.
    """
    if isinstance(schema, list):
        return [without_paths(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {name: without_paths(value) for name, value in schema.items()}
    if isinstance(kept.get("properties"), dict):
        kept["properties"].pop("paths", None)
    return kept


@pytest.mark.slow
def test_schemathesis_finds_nothing(server: LocalServer, tmp_path: Path) -> None:
    document = json.loads(fetched(f"{server.url}/openapi.json"))
    tested, report = tmp_path / "openapi.json", tmp_path / "report.xml"
    tested.write_text(json.dumps(without_paths(document)))
    # Without `--max-time`, which leaves out operations on a machine that is busy.
    command = [sys.executable, "-m", "schemathesis.cli", "run", str(tested), "--url", server.url, "--no-color"]
    command += ["--max-examples", str(EXAMPLES), "--request-timeout", "30"]
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
    # None may be left out by schemathesis without a word.
    operations = {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}
    cases = ET.parse(report).iter("testcase")
    assert operations
    assert operations - {case.get("name") for case in cases if case.find("skipped") is None} == set()
    assert fetched(f"{server.url}/health")
