"""What the system says of its C library and CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from ortkit.runtime.host_facts import Libc, cpu_flags, find_libc, numbers_of


def test_musl(monkeypatch: pytest.MonkeyPatch) -> None:
    """Musl's confstr does not know the name, and Python says ValueError."""

    def unknown(_name: str) -> str:
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr("os.confstr", unknown)
    assert find_libc() == Libc()
    monkeypatch.setattr(
        "sysconfig.get_config_var", lambda name: "cpython-311-x86_64-linux-musl" if name == "SOABI" else ""
    )
    assert find_libc() == Libc("musl")
    monkeypatch.setattr("os.confstr", lambda _: "glibc 2.36")
    assert find_libc() == Libc("glibc", (2, 36))


def test_versions() -> None:
    assert numbers_of("2.36-9+deb12u7") == (2, 36)
    assert numbers_of("1.32.0rc1") == (1, 32, 0)
    assert numbers_of("") == ()


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2\n\nprocessor\t: 1\nflags\t\t: other\n", {"fpu", "avx2"}),
        ("processor\t: 0\nFeatures\t: fp asimd\n", {"fp", "asimd"}),
        ("processor\t: 0\n", None),
    ],
)
def test_the_features_of_the_first_cpu(tmp_path: Path, text: str, flags: set[str] | None) -> None:
    (tmp_path / "cpuinfo").write_text(text)

    assert cpu_flags(tmp_path / "cpuinfo") == flags
    assert cpu_flags(tmp_path / "none") is None
