"""Phrases that must not come back: for each the field has a term that says the same."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PHRASES = {
    r"(?<!there\s)\b(?:is|are) no (?!longer\b|(?:more|less|larger|smaller) than\b)": "`is not a`, `must be a`",
    r"\bknown (?:are|is)\b(?! (?:not )?None)": "`supported:`",
    r"\b(?:ortkit|which it) (?:does not know|knows)\b": "`is not supported`, `supports`",
    r"\bwants? the inputs?\b": "expects inputs",
    r"\bword vectors?\b": "token embeddings, embedding table",
    r"(?<!queries,\s)\bkeys and values\b": "KV cache",
    r"\bmak(?:e|es|ing) up for\b": "error compensation, GPTQ",
    r"\bweightless\b": "lazy, on the meta device",
    r"\brounded (?:in turn|by what matters|by importance)\b": "GPTQ, importance-weighted rounding",
    r"\bblocks that share a scale\b": "block-wise quantization, group size",
    r"\bgoes? (?:before|on)\b|\bgoing on (?:with|where)\b": "takes precedence over, resumes, continues",
    r"\b(?:holds?|asked for|below|reach(?:es)?) (?:a|the) bar\b": "threshold",
    r"\b(?:is|are|was|were) (?:told|said) (?!to\b)|\btells? (?:of|what|how|which|whether)\b": "is reported, shows",
    r"(?<![\"'`])\blicence\b": "license",
    r"\bha(?:ve|s) no network\b|\bwithout a network\b": "offline, air-gapped",
    r"\bproducts? (?:of (?:a|the) (?:layers?|token|prompt)|in float32|with (?:4|8)|but)\b|\b(?:become|one) product\b": (
        "linear layers, matmuls"
    ),
    r"\bsaved prefix|\bprefix that was saved\b": "prompt cache",
    r"\bwhat (?:was|is) (?:there|known) (?:before|already)\b": "cached",
    r"\bfrom the bound\b|\bby the book\b": "as the paper says",
    r"\bread(?:ing)? (?:of )?(?:a|the|its) (?:long )?prompt\b(?! cache)|\bprompt (?:is|was) read\b": "prefill",
    r"\bdraft(?:s|ed)? from the text\b": "prompt lookup, n-gram speculation",
    r"\b(?:large|small) pages\b|\bpages of 2 MiB\b": "huge pages",
    r"\bmodels? that writes?\b|\bones that write\b": "LLMs, text generation",
    r"\bfirst tokens? of (?:all|each) texts?\b": "[CLS] tokens",
    r"\banew\b": "again",
    r"\bbr(?:oke|oken|eaks?) off\b": "interrupted, stopped",
}
"""A pattern, and what to write instead."""
NOT_A_CACHE = tuple(
    f"{tree}exporters/{place}" for tree in ("", "tests/") for place in ("encoder/", "providers/", "graph/attention.py")
)
"""Where keys and values are those of an encoder's attention."""
FILES = (".py", ".md", ".toml", ".yaml", ".sh", "Makefile")
SIZES = ("runtime/sizes.py", "runtime/installer/checks.py", "runtime/pack/unpack.py")
SKIPPED = (
    "tests/test_language.py",  # names the phrases
    "LICENSE",
    "constraints.txt",
)


def texts() -> dict[str, str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = [name for name in listed.splitlines() if name.endswith(FILES) and not name.startswith(SKIPPED)]
    return {name: (ROOT / name).read_text("utf-8") for name in names if (ROOT / name).is_file()}


@pytest.mark.parametrize(("pattern", "instead"), PHRASES.items(), ids=list(PHRASES.values()))
def test_the_fields_own_words(pattern: str, instead: str) -> None:
    found = [
        f"{name}:{text[: match.start()].count(chr(10)) + 1}: {match[0]!r}"
        for name, text in texts().items()
        if not (instead == "KV cache" and name.startswith(NOT_A_CACHE))
        for match in re.finditer(pattern.replace(" ", r"\s++"), text, re.IGNORECASE)
    ]

    assert not found, f"write {instead}:\n" + "\n".join(found)


def test_sizes_are_given_by_one_function_each() -> None:
    """`megabytes` for files, `mebibytes` for memory; a kit's installer has what it needs in its own folder."""
    found = [
        f"{name}:{text[: match.start()].count(chr(10)) + 1}: {match[0]}"
        for name, text in texts().items()
        if name.startswith(("runtime/", "exporters/", "toolkit/")) and name not in SIZES
        for match in re.finditer(r"\{[^{}\n]*(?:1e6|1 << 20|2\*\*20|10\*\*6)\b[^{}\n]*\} (?:MB|MiB)", text)
    ]

    assert not found, "use runtime/sizes.py:\n" + "\n".join(found)


def test_the_texts_that_people_read_are_among_them() -> None:
    read = texts()

    assert {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "models.yaml", "pyproject.toml"} <= set(read)
    assert {"docs/generate.md", "benchmarks/README.md", "benchmarks/decoding.py"} <= set(read)
    assert "## Unreleased" in read["CHANGELOG.md"]


@pytest.mark.parametrize(
    "sentence",
    [
        "`x` is no bundle",
        "known are `a`, `b`",
        "the table of word vectors",
        "keys and\nvalues of a layer",
        "so that the errors make up for one another",
        "the file goes before the variable",
        "a download that breaks off",
        "weights on large pages",
        "models that write",
    ],
)
def test_the_patterns_find_what_they_are_for(sentence: str) -> None:
    assert any(re.search(pattern.replace(" ", r"\s++"), sentence, re.IGNORECASE) for pattern in PHRASES)


@pytest.mark.parametrize(
    "sentence", ["it is no longer needed", "there is no token", "if known is None", "its license", "the prompt cache"]
)
def test_the_patterns_leave_good_sentences(sentence: str) -> None:
    assert not any(re.search(pattern.replace(" ", r"\s++"), sentence, re.IGNORECASE) for pattern in PHRASES)
