"""The page at `/`: its files, what browsers may load with it, and what a person without a mouse needs."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from ortkit import Decoder, Embedder, Reranker
from ortkit.toolkit.search.answers import Answerer
from ortkit.toolkit.search.index import Index
from ortkit.toolkit.server.page import FILES, POLICY, PageFiles
from tests.decoders import write_decoder
from tests.served import serving
from tests.tiny_bundles import write_embedder, write_reranker
from tests.toolkit.server.conftest import write_folder

KEY = "k" * 24
FOLDER = resources.files("ortkit.toolkit.server.page")
TEXTS = {name: FOLDER.joinpath(name).read_text("utf-8") for name, _ in FILES.values()}


async def nothing(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 404, "headers": []})


def get(path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        sent.append(message)

    encoded = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "path": path, "method": method, "headers": encoded}
    asyncio.run(PageFiles(nothing)(scope, receive, send))
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], found, b"".join(message.get("body", b"") for message in sent[1:])


def test_files_and_headers() -> None:
    for path, (name, kind) in FILES.items():
        status, headers, body = get(path)
        assert (status, headers["content-type"], body.decode()) == (200, kind, TEXTS[name])
        assert headers["content-security-policy"] == POLICY
        assert get(path, if_none_match=headers["etag"])[::2] == (304, b"")
        assert get(path, "HEAD")[::2] == (200, b"")
    assert get("/", "POST")[0] == get("/page/")[0] == get("/page/../__init__.py")[0] == 404
    assert "unsafe" not in POLICY
    assert "default-src 'none'" in POLICY


class Elements(HTMLParser):
    """The elements of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


ELEMENTS = Elements(TEXTS["index.html"]).found


def test_nothing_is_loaded_from_elsewhere() -> None:
    """No other host, no inline script or style, which the policy forbids."""
    for tag, attributes in ELEMENTS:
        assert not {name for name in attributes if name.startswith("on") or name == "style"}, attributes
        assert tag not in {"style", "iframe", "object", "embed", "base"}
        for name in ("src", "href"):
            if attributes.get(name) is not None:
                assert re.fullmatch(r"/page/[a-z.]+|#main|/openapi\.json", str(attributes[name]))
        if tag == "script":
            assert attributes.get("src") in FILES
    for name, text in TEXTS.items():
        assert set(re.findall(r"https?://[^\s\"']+", text)) <= {"http://www.w3.org/2000/svg"}, name
    for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "localStorage"):
        assert forbidden not in TEXTS["page.js"]
    for forbidden in ("sessionStorage", "document.cookie", "new Function", "import("):
        assert forbidden not in TEXTS["page.js"]
    assert not re.search(r"@import|url\(", TEXTS["page.css"])


def test_every_field_has_a_label_and_every_name_is_there() -> None:
    ids = [attributes["id"] for _, attributes in ELEMENTS if "id" in attributes]
    labels = {attributes["for"] for tag, attributes in ELEMENTS if tag == "label"}
    fields = {str(attributes["id"]) for tag, attributes in ELEMENTS if tag in {"input", "select", "textarea"}}

    assert len(ids) == len(set(ids))
    assert fields == labels
    for name in re.findall(r'byId\("([^"$]+)"\)', TEXTS["page.js"]):
        assert name in ids
    for _, attributes in ELEMENTS:
        for name in ("aria-labelledby", "aria-controls", "aria-describedby"):
            assert attributes.get(name) is None or attributes[name] in ids
    assert dict(ELEMENTS)["html"]["lang"] == "en"
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in ELEMENTS
    tabs = [attributes for _, attributes in ELEMENTS if attributes.get("role") == "tab"]
    assert [tab["aria-selected"] for tab in tabs] == ["true", "false", "false", "false", "false"]
    assert sum(attributes.get("role") == "status" for _, attributes in ELEMENTS) == 5


def test_it_has_dark_colors_and_no_width_that_a_phone_lacks() -> None:
    css = TEXTS["page.css"]

    assert "prefers-color-scheme: dark" in css
    assert {float(width) for width in re.findall(r"(?<!max-)(?<!min-)width: ([\d.]+)rem", css)} <= {8.0}
    for block in re.findall(r":root \{([^}]*)\}", css):
        colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
        for text, back in (
            ("text", "back"),
            ("text", "soft"),
            ("on-mark", "mark"),
            ("on-found", "found"),
            ("bad", "back"),
        ):
            assert contrast(colors[text], colors[back]) >= 4.5, (text, back)
        assert contrast(colors["line"], colors["back"]) >= 3


def contrast(one: str, other: str) -> float:
    """The contrast of two colors (WCAG 2.2)."""
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def luminance(color: str) -> float:
    parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_script_is_read_by_an_engine(tmp_path: Path) -> None:
    script = tmp_path / "page.mjs"
    script.write_text(TEXTS["page.js"], "utf-8")

    finished = subprocess.run(["node", "--check", script], capture_output=True, text=True, check=False)

    assert (finished.returncode, finished.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_script_against_a_server(tmp_path: Path) -> None:
    """Models, search as typed, reranking, chat with stop, status: the same as the library says; the key is sent."""
    bundles = [
        write_embedder(tmp_path / "searcher").path,
        write_reranker(tmp_path / "ranker").path,
        write_decoder(tmp_path / "writer")[0].path,
    ]
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    keys.chmod(0o600)
    files = {
        "fox.md": "# Animals\n\n## Foxes\n\nThe quick fox <b onclick=x>jumps</b> over two foxes.\n",
        "dogs/dog.txt": "The lazy dog.\n",
        "other.txt": "A quick fox in another file.\n",
    }
    index = tmp_path / "manuals.index"
    Index.build(index, write_folder(tmp_path / "texts", files), bundles[0]).close()
    with serving(tmp_path, *bundles, "--index", index, "--api-keys", keys, "--threads", 1) as server:
        driver = Path(__file__).with_name("page_driver.mjs")
        command = ["node", driver, str(FOLDER), server.url, KEY]
        finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert finished.returncode == 0, finished.stderr
    seen = json.loads(finished.stdout)

    assert seen["without_key"] == "This server needs an API key: type it at the top of the page."
    assert seen["models"] == ["writer", "searcher", "ranker"]
    texts = ["the lazy dog", "the quick brown fox", "and the dog sleeps"]
    with Embedder(bundles[0]) as embedder:
        scores = embedder.embed(texts) @ embedder.embed("the quick brown fox")
    expected = sorted(zip(scores.tolist(), texts, strict=True), reverse=True)
    assert [row.split("  ")[1] for row in seen["ranked"]] == [text for _, text in expected]
    assert [float(row.split("  ")[0]) for row in seen["ranked"]] == pytest.approx(
        [score for score, _ in expected], abs=6e-4
    )
    with Reranker(bundles[1]) as reranker:
        best = [found.text for found in reranker.rank("fox", ["the lazy dog", "the quick brown fox"])]
    assert [row.split("  ")[1] for row in seen["reranked"]] == best
    with Decoder(bundles[2]) as decoder:
        answer = decoder.chat([{"role": "user", "content": "the quick"}], max_tokens=6, temperature=0)
    assert seen["answer"] == answer.text
    check_search(seen, index, bundles[2])
    assert seen["answered"].startswith(f"{answer.usage.prompt_tokens} tokens read, 6 written, ")
    assert seen["is_busy"] == [True, False, "true"]
    assert seen["is_free"] == [False, True, None]
    assert seen["shown"] == ["status"]
    assert seen["state"] == "The server is ready."
    assert seen["figures"][::2] == [
        "Now",
        "Requests",
        "Tokens",
        "First token",
        "Speed of an answer",
        "Prefix cache",
        "Memory",
    ]


def check_search(seen: dict[str, Any], path: Path, decoder: Path) -> None:
    """Results, their marked words and the sources of an answer; HTML in a file is shown as text."""
    assert seen["indexes"] == ["manuals", "manuals", False]
    assert seen["rerankers"] == ["", "ranker"]
    with Index.open(path) as index, Decoder(decoder) as llm:
        hits = index.search("quick Foxes <b>", paths=["*.md", "dogs/**"])
        grounding = Answerer(index, llm, answer_tokens=6).prepare("the quick fox")
        answer = llm.chat(grounding.messages, max_tokens=6, temperature=0)
        chunks = index.facts.chunks
    assert [one["text"] for one in seen["found"]] == [hit.text for hit in hits]
    assert {hit.file for hit in hits} == {"fox.md", "dogs/dog.txt"}
    [fox] = [one for one in seen["found"] if one["place"].startswith("fox.md")]
    [hit] = [one for one in hits if one.file == "fox.md"]
    first, last = hit.place.lines or (0, 0)
    lines = f"{first}-{last}" if last > first else f"{first}"
    assert fox["place"].startswith(f"fox.md:{lines} (")
    assert "<b onclick=x>jumps</b>" in fox["snippet"]
    assert fox["marks"] == ["quick", "foxes"]
    assert re.fullmatch(r"2 passages in \d+ ms\.", seen["found_state"])
    assert seen["nothing_found"] == "Nothing was found."
    assert seen["refused"].startswith("`paths[0]` is not a pattern of files (such as `*.md`, ")
    assert seen["grounded"] == answer.text
    assert [one["place"].partition(":")[0] for one in seen["sources"]] == [
        f"[{source.number}] {source.hit.file}" for source in grounding.sources
    ]
    assert [one["text"] for one in seen["sources"]] == [source.hit.text for source in grounding.sources]
    assert seen["listed"] == [f"manuals: 3 files, {chunks} passages"]
