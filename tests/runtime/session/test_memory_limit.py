from __future__ import annotations

from pathlib import Path

import pytest

from ortkit import InputError, OutOfMemoryError, Precision
from ortkit.runtime.bundle.bundle import GRAPH, Bundle
from ortkit.runtime.session.config import SessionConfig
from ortkit.runtime.session.memory_limit import MARGIN, MemoryLimit, max_memory_of, resident_memory
from ortkit.runtime.session.open_sessions import is_open, shared_session
from ortkit.runtime.session.opening import opening_size, size_to_open, smaller
from tests.tiny_bundles import rehash, write_embedder


def test_the_argument_takes_precedence_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORTKIT_MAX_MEMORY", raising=False)
    assert max_memory_of(None) is None
    monkeypatch.setenv("ORTKIT_MAX_MEMORY", "512M")
    assert max_memory_of(None) == 512 << 20
    assert max_memory_of(1000) == 1000
    monkeypatch.setenv("ORTKIT_MAX_MEMORY", "")
    assert max_memory_of(None) is None


@pytest.mark.parametrize(
    ("argument", "variable", "message"),
    [
        (0, None, "`max_memory` must be at least 1, not 0"),
        ("512M", None, "`max_memory` must be an integer, not str"),
        (None, "half of it", "`ORTKIT_MAX_MEMORY` must be a size such as 500M or 4G, not `half of it`"),
        (None, "-1", "`ORTKIT_MAX_MEMORY` must be a size such as 500M or 4G, not `-1`"),
    ],
)
def test_limits_that_are_no_sizes(
    argument: object, variable: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable is not None:
        monkeypatch.setenv("ORTKIT_MAX_MEMORY", variable)

    with pytest.raises(InputError) as caught:
        max_memory_of(argument)
    assert caught.value.message == message


def test_resident_memory_is_what_the_system_counts(tmp_path: Path) -> None:
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS:"))
        assert resident_memory() == pytest.approx(int(line.split()[1]) * 1024, rel=0.02)
    # Elsewhere, the most that there has been.
    assert resident_memory(tmp_path / "none") >= resident_memory() * 0.5 > 1 << 20


def test_what_exceeds_the_limit_is_refused_with_what_would_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ortkit.runtime.session.memory_limit.resident_memory", lambda: 50 << 20)
    limit = MemoryLimit(100 << 20)

    assert limit.left() == (50 << 20) - MARGIN
    limit.check(limit.left(), "opening `b`", instead="take less")
    with pytest.raises(OutOfMemoryError) as caught:
        limit.check(60 << 20, "opening `b`", instead="take a smaller model")
    assert caught.value.message == "opening `b` takes this process to about 122 MiB, and `max_memory` is 100 MiB"
    assert caught.value.hint == ("raise `max_memory` (`--max-memory 122M`, ORTKIT_MAX_MEMORY), or take a smaller model")
    assert caught.value.exit_code == 9


def test_weights_that_are_open_already_take_nothing(tmp_path: Path) -> None:
    """Models of the same bundle share them."""
    bundle = write_embedder(tmp_path / "embedder")
    config = SessionConfig.of(bundle)

    assert opening_size(bundle, config) == size_to_open(bundle)
    session = shared_session(bundle.path / GRAPH, config)
    assert is_open(bundle.path / GRAPH, config)
    assert 0 < opening_size(bundle, config) < size_to_open(bundle) - session.weights
    del session
    assert not is_open(bundle.path / GRAPH, config)


def test_what_takes_less_than_a_bundle(tmp_path: Path) -> None:
    bundle = write_embedder(tmp_path / "embedder")

    assert smaller(bundle) == "take a bundle of fewer bits: `ortkit export MODEL --precision int8`"
    rehash(bundle.path, lambda manifest: manifest.update(precision=Precision.INT8.value))
    assert smaller(Bundle.open(bundle.path)) == "take a smaller model"
