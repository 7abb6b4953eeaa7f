"""Mutated packs, manifests and signatures, as many as wanted: each is refused with an ortkit error, or says the same.

`python -m tests.mutations FOLDER COUNT [FIRST]` tries COUNT of them, seeded from FIRST on: half are packs, a fifth
manifests, the rest signatures. Each has bounded time and memory. Prints the counts, the slowest one and the peak of
memory; ends with a traceback, which names the seed, where something is accepted that should not be, or fails otherwise.
"""

from __future__ import annotations

import json
import random
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from ortkit.runtime.bundle.bundle import Bundle
from ortkit.runtime.errors import BundleError, NotTrustedError
from ortkit.runtime.trust.signature import verify_signature
from tests.mutated_packs import MEMORY, SECONDS, attempt, change_json, cut, flip, too_slow
from tests.packs import bundle_files, write_bundle
from tests.runtime.trust.test_signature import FILES, TRUSTED, Mutations, same


def change_manifest(content: bytes, draw: random.Random) -> bytes:
    """Changed JSON, or changed bytes."""
    if draw.random() < 0.3:
        changed = bytearray(content)
        draw.choice([flip, flip, cut])(changed, draw)
        return bytes(changed)
    value = json.loads(content)
    for _ in range(draw.choice([1, 1, 1, 3])):
        change_json(value["files"] if draw.random() < 0.3 and isinstance(value.get("files"), dict) else value, draw)
        # The values that are put in are shared, and the next change must not reach them.
        value = json.loads(json.dumps(value))
    return json.dumps(value).encode()


class Manifests:
    """A bundle whose manifest is another one each time."""

    def __init__(self, folder: Path) -> None:
        self.path = write_bundle(folder, bundle_files()).path
        self.content = (self.path / "manifest.json").read_bytes()

    def attempt(self, seed: int) -> bool:
        """Open it; whether it was refused."""
        (self.path / "manifest.json").write_bytes(change_manifest(self.content, random.Random(seed)))
        try:
            opened, files = Bundle.unsigned(self.path)
            opened.check_hashes(opened.manifest.files)
        except BundleError:
            return True
        assert {*files} == {"manifest.json", *opened.manifest.files} == {path.name for path in self.path.iterdir()}
        return False


def attempt_signature(seed: int) -> bool:
    mutations = signatures()
    mutations.chance = random.Random(seed)
    content = mutations.one()
    try:
        verify_signature(FILES, content, TRUSTED)
    except NotTrustedError:
        return True
    assert same(content, mutations.originals), content
    return False


_MADE: list[Mutations] = []


def signatures() -> Mutations:
    """The originals, signed once."""
    if not _MADE:
        _MADE.append(Mutations(0))
    return _MADE[0]


def kilobytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(folder: str, count: str, first: str = "0") -> None:
    place = Path(folder)
    packs = place / "packs"
    packs.mkdir(parents=True)
    manifests = Manifests(place / "manifest" / "bundle")
    signatures()
    attempts: list[tuple[str, Callable[[int], bool]]] = [
        *[("packs", lambda seed: attempt(packs, seed))] * 5,
        *[("manifests", manifests.attempt)] * 2,
        *[("signatures", attempt_signature)] * 3,
    ]
    before = kilobytes()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    # CPU time: other processes count for nothing.
    signal.signal(signal.SIGPROF, too_slow)
    refused: Counter[str] = Counter()
    accepted: Counter[str] = Counter()
    slowest = (0.0, "", 0)
    for seed in range(int(first), int(first) + int(count)):
        kind, run = attempts[seed % len(attempts)]
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        begun = time.process_time()
        try:
            (refused if run(seed) else accepted)[kind] += 1
        except BaseException as error:
            error.add_note(f"{kind}, seed {seed}")
            raise
        slowest = max(slowest, (time.process_time() - begun, kind, seed))
        assert {path.name for path in place.iterdir()} == {"packs", "manifest"}, f"seed {seed} left files"
        assert not (place.parent / "evil").exists(), f"seed {seed} wrote outside its folder"
    signal.setitimer(signal.ITIMER_PROF, 0)
    for kind in ("packs", "manifests", "signatures"):
        print(f"{kind}: {refused[kind]} refused, {accepted[kind]} say the same or what nothing reads")
    print(f"slowest: {slowest[0] * 1000:.0f} ms of CPU time ({slowest[1]}, seed {slowest[2]})")
    print(f"peak: {before // 1024} MiB before the first, {kilobytes() // 1024} MiB after the last")


if __name__ == "__main__":
    main(*sys.argv[1:])
