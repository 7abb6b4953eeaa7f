"""Wheels (PEP 427): whether one runs on this machine, and unpacking it with the hashes of its RECORD, without pip."""

from __future__ import annotations

import base64
import csv
import errno
import hashlib
import io
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import BundleError
from .files import FILE_MODE, share
from .host import Host, dotted

_NAME = re.compile(
    r"(?P<name>\w[\w.]*)-(?P<version>\w[\w.!+]*)(?:-\d[^-]*)?-(?P<python>[\w.]+)-(?P<abi>[\w.]+)-(?P<platform>[\w.]+)\.whl",
    re.ASCII,
)
_MANYLINUX = {"manylinux1": (2, 5), "manylinux2010": (2, 12), "manylinux2014": (2, 17)}
"""The first names of manylinux (PEP 600) -> their glibc."""
_UNSIGNED = ("RECORD.jws", "RECORD.p7s")
"""Files of a dist-info folder that RECORD does not list, beside itself."""
_LARGEST_RECORD = 1 << 24
_MOST_FILES = 100_000
_COPIED = 1 << 20
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError, ValueError)
"""What `zipfile` raises for an archive that is damaged, encrypted or compressed in another way."""


@dataclass(frozen=True)
class WheelName:
    """The parts of a wheel's file name."""

    file: str
    name: str
    version: str
    pythons: tuple[str, ...]
    abis: tuple[str, ...]
    platforms: tuple[str, ...]

    @classmethod
    def of(cls, file: str) -> WheelName:
        """Raises BundleError for a name that is not a wheel's."""
        found = _NAME.fullmatch(file)
        if found is None:
            raise BundleError(f"`{file}` is not the name of a wheel")
        tags = (tuple(found[tag].split(".")) for tag in ("python", "abi", "platform"))
        return cls(file, found["name"], found["version"], *tags)

    @property
    def record(self) -> str:
        """The path of its RECORD in site-packages."""
        return f"{self.name}-{self.version}.dist-info/RECORD"

    @property
    def glibc(self) -> tuple[int, int] | None:
        """The lowest glibc that it runs with; None for one without native code."""
        found = [version for platform in self.platforms if (version := _glibc_of(platform)) is not None]
        return min(found, default=None)

    def check(self, host: Host) -> None:
        """Raise BundleError where the wheel's tags do not fit this machine's Python and platform."""
        fits = any(_python_fits(python, abi, host) for python in self.pythons for abi in self.abis)
        if not fits or not any(_platform_fits(platform, host) for platform in self.platforms):
            raise BundleError(
                f"the wheel `{self.file}` does not run on this machine: CPython {dotted(host.python)}, {host.platform}",
                hint="the kit was put together from the wrong wheels; make it again with `ortkit kit`",
            )


def _python_fits(python: str, abi: str, host: Host) -> bool:
    major, minor = host.python[:2]
    if abi == "none":
        pure = re.fullmatch(r"(?:py|cp)(\d)(\d*)", python)
        return pure is not None and int(pure[1]) == major and (not pure[2] or int(pure[2]) <= minor)
    version = re.fullmatch(r"cp(\d)(\d+)", python)
    if version is None or int(version[1]) != major:
        return False
    # The stable ABI runs on later versions too; another one, such as `cp313t`, is another Python.
    return int(version[2]) <= minor if abi == "abi3" else abi == python == f"cp{major}{minor}"


def _glibc_of(platform: str) -> tuple[int, int] | None:
    """The glibc of a platform tag; None for `any`, and (0, 0) for `linux_ARCH`, which does not say."""
    if platform == "any":
        return None
    for name, version in _MANYLINUX.items():
        if platform.startswith(f"{name}_"):
            return version
    found = re.match(r"manylinux_(\d+)_(\d+)_", platform)
    return (int(found[1]), int(found[2])) if found is not None else (0, 0)


def _platform_fits(platform: str, host: Host) -> bool:
    if platform == "any":
        return True
    if host.glibc is None or not platform.endswith(f"_{host.machine}"):
        return False
    known = platform.startswith("manylinux") or platform == f"linux_{host.machine}"
    return known and (_glibc_of(platform) or (0, 0)) <= host.glibc


@dataclass(frozen=True)
class RecordedFile:
    """A file that a wheel installs."""

    path: str
    """In the wheel."""
    sha256: str
    size: int | None

    @property
    def installed(self) -> str | None:
        """Its path in site-packages; None for what is not installed: scripts and headers."""
        top, _, rest = self.path.partition("/")
        if not top.endswith(".data"):
            return self.path
        scheme, _, inner = rest.partition("/")
        return inner if scheme in {"purelib", "platlib"} else None


class Site:
    """A site-packages folder that wheels are unpacked into; two of them may not have a file in common."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.owners: dict[str, str] = {}
        """Path of a file in the folder, case ignored -> the wheel that it is of."""

    def unpack(self, wheel: Path) -> None:
        """Unpack a wheel whose own hash was checked; raises BundleError where its files are not those of its RECORD."""
        name = WheelName.of(wheel.name)
        try:
            with zipfile.ZipFile(wheel) as archive:
                entries = _entries(archive, wheel.name)
                content = _record_of(archive, entries, name)
                record = list(_parse_record(content.decode("utf-8"), name))
                listed = {file.path: file for file in record}
                own = {name.record, *(f"{Path(name.record).parent}/{other}" for other in _UNSIGNED)}
                stray = sorted(set(entries) - set(listed) - own)
                missing = sorted(set(listed) - set(entries))
                if stray or missing:
                    raise BundleError(f"the wheel `{wheel.name}` differs from its RECORD in `{(stray + missing)[0]}`")
                for file in record:
                    self._write(archive, entries[file.path], file, name)
                self._claim(name.record, name)
                self._path(name.record).write_bytes(content)
                self._path(name.record).chmod(FILE_MODE)
        except _DAMAGE as error:
            raise BundleError(f"`{wheel.name}` is not a valid wheel: {error}") from error
        except OSError as error:
            # An offset before the beginning; anything else is about the disk.
            if error.errno != errno.EINVAL:
                raise
            raise BundleError(f"`{wheel.name}` is not a valid wheel: {error.strerror}") from error

    def share(self, name: WheelName, other: Path, sha256: str) -> bool:
        """Share the files of a wheel that another site-packages folder has; False where they were changed there.

        `sha256` is that of the wheel's RECORD, which has the hashes of the others.
        """
        try:
            content = (other / name.record).read_bytes()
            if hashlib.sha256(content).hexdigest() != sha256:
                return False
            record = list(_parse_record(content.decode("utf-8"), name))
        except (OSError, ValueError, BundleError):
            return False
        shared: list[Path] = []
        for file in record:
            if file.installed is None:
                continue
            self._claim(file.installed, name)
            target = self._path(file.installed)
            if not share(other / file.installed, target, file.sha256):
                self._forget(shared)
                return False
            shared.append(target)
        self._claim(name.record, name)
        self._path(name.record).write_bytes(content)
        self._path(name.record).chmod(FILE_MODE)
        return True

    def _write(self, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, file: RecordedFile, name: WheelName) -> None:
        if file.installed is None:
            return
        self._claim(file.installed, name)
        target = self._path(file.installed)
        digest, size = hashlib.sha256(), 0
        with archive.open(entry) as source, target.open("xb") as out:
            while block := source.read(_COPIED):
                size += len(block)
                digest.update(block)
                out.write(block)
        if digest.hexdigest() != file.sha256 or file.size not in (None, size):
            raise BundleError(f"`{file.path}` in the wheel `{name.file}` differs from its RECORD")
        target.chmod(FILE_MODE)

    def _path(self, installed: str) -> Path:
        path = self.folder / installed
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _claim(self, installed: str, name: WheelName) -> None:
        owner = self.owners.setdefault(installed.casefold(), name.file)
        if owner != name.file:
            raise BundleError(
                f"the wheels `{owner}` and `{name.file}` both have `{installed}`",
                hint="a kit has one package that is imported as onnxruntime: bundles for one provider alone",
            )

    def _forget(self, shared: list[Path]) -> None:
        for path in shared:
            path.unlink()
            del self.owners[str(path.relative_to(self.folder)).casefold()]


def unpacked_size(wheel: Path) -> int:
    """Bytes of a wheel's files; raises BundleError for what is not a wheel."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            return sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError) as error:
        raise BundleError(f"`{wheel}` is not a valid wheel: {error}") from error


def record_sha256(wheel: Path) -> str:
    """The sha256 of a wheel's RECORD; raises BundleError for what is not a wheel."""
    name = WheelName.of(wheel.name)
    try:
        with zipfile.ZipFile(wheel) as archive:
            return hashlib.sha256(_record_of(archive, _entries(archive, wheel.name), name)).hexdigest()
    except (*_DAMAGE, OSError) as error:
        raise BundleError(f"`{wheel}` is not a valid wheel: {error}") from error


def _entries(archive: zipfile.ZipFile, wheel: str) -> dict[str, zipfile.ZipInfo]:
    """Path -> entry of all files; raises BundleError for two of one name, a link, or a path that leaves the folder."""
    found: dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        if entry.is_dir():
            continue
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG) or not _is_plain(entry.filename) or entry.filename in found:
            raise BundleError(f"`{entry.filename}` in the wheel `{wheel}` is a link, listed twice or an unsafe path")
        found[entry.filename] = entry
        if len(found) > _MOST_FILES:
            raise BundleError(f"the wheel `{wheel}` has more than {_MOST_FILES} files")
    return found


def _is_plain(path: str) -> bool:
    parts = PurePosixPath(path).parts
    plain = path == "/".join(parts) and path.isprintable() and "\\" not in path and ":" not in path
    return bool(parts) and plain and ".." not in parts and not path.startswith("/")


def _record_of(archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], name: WheelName) -> bytes:
    entry = entries.get(name.record)
    if entry is None or entry.file_size > _LARGEST_RECORD:
        raise BundleError(f"the wheel `{name.file}` has no `{name.record}` of a usable size")
    return archive.read(entry)


def _parse_record(text: str, name: WheelName) -> Iterator[RecordedFile]:
    """The files of a RECORD but for those that cannot be in it with a hash."""
    own = {name.record, *(f"{Path(name.record).parent}/{other}" for other in _UNSIGNED)}
    for row in csv.reader(io.StringIO(text)):
        if not row or row[0] in own:
            continue
        path, method, size = (*row, "", "")[:3]
        algorithm, _, encoded = method.partition("=")
        if algorithm != "sha256" or not _is_plain(path):
            raise BundleError(f"the RECORD of the wheel `{name.file}` lists `{path}` without a sha256")
        digest = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
        yield RecordedFile(path, digest.hex(), int(size) if size.isdecimal() else None)
