"""ortkit's own wheel: given, built from the source folder, or packed again from the installed files."""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.metadata
import importlib.util
import io
import shutil
import zipfile
import zlib
from pathlib import Path

from packaging.utils import InvalidWheelFilename, parse_wheel_filename
from packaging.version import Version

from ...runtime.errors import BundleError, InputError, NetworkError, NotFoundError, OrtkitError
from ...runtime.version import __version__
from .pip_download import Pip
from .wheel_lock import LockedWheel, Pin

NAME = "ortkit"
FILE = f"{NAME}-{__version__}-py3-none-any.whl"
_ROOT = Path(__file__).resolve().parents[2]
"""The source folder; where ortkit was installed from a wheel, the folder that holds the package's own."""
_METADATA = ("METADATA", "WHEEL", "entry_points.txt")
"""Files of a wheel's dist-info; installers add others."""
_DATE = (1980, 1, 1, 0, 0, 0)
_GIVE_ONE = "name a wheel of ortkit with `--ortkit-wheel FILE`"


def own_wheel(given: Path | None, folder: Path, pip: Pip) -> Path:
    """The path of ortkit's wheel of this version: `given`, or one that is made in the folder."""
    if given is not None:
        _check(given)
        return given
    folder.mkdir()
    return _build(_ROOT, folder, pip) if (_ROOT / "pyproject.toml").is_file() else _repack(folder)


def pin_of(wheel: Path) -> Pin:
    """The pin of ortkit's wheel."""
    content = wheel.read_bytes()
    return Pin(NAME, __version__, LockedWheel(FILE, len(content), hashlib.sha256(content).hexdigest()))


def _check(path: Path) -> None:
    """Raise an error where the file is not a wheel of this version of ortkit."""
    if not path.is_file():
        raise NotFoundError(f"there is no file `{path}`", hint="`pip wheel --no-deps .` in ortkit's source makes one")
    try:
        name, version, _, tags = parse_wheel_filename(path.name)
    except InvalidWheelFilename as error:
        raise InputError(f"`{path}` is not named as a wheel: `{FILE}`, for example") from error
    if (name, version) != (NAME, Version(__version__)) or {str(tag) for tag in tags} != {"py3-none-any"}:
        raise InputError(
            f"`{path}` is a wheel of {name} {version}, and the lock has what {NAME} {__version__} needs",
            hint=f"run the `ortkit wheelhouse` of that version, or name a wheel of {NAME} {__version__}",
        )
    try:
        with zipfile.ZipFile(path) as archive:
            archive.getinfo(f"{NAME}-{__version__}.dist-info/METADATA")
            damaged = archive.testzip() is not None
    except (zipfile.BadZipFile, KeyError, zlib.error):
        damaged = True
    if damaged:
        raise BundleError(f"`{path}` is not a wheel, or is damaged", hint="copy or build the wheel again")


def _build(source: Path, folder: Path, pip: Pip) -> Path:
    """Build the wheel with the build backend of pyproject.toml; pip fetches the backend where it is not installed."""
    isolated = importlib.util.find_spec("hatchling") is None
    options = ["--no-deps", "--wheel-dir", str(folder), *([] if isolated else ["--no-build-isolation"])]
    complaint = pip.run("wheel", *options, str(source))
    built = folder / FILE
    if complaint is None and built.is_file():
        return built
    message = f"pip could not build ortkit's wheel from `{source}`{f' ({complaint})' if complaint else ''}"
    if isolated:
        raise NetworkError(
            message,
            hint=f"building needs `hatchling`, from the index that pip is set to: `pip config list`; or {_GIVE_ONE}",
        )
    raise OrtkitError(message, hint=_GIVE_ONE)


def _repack(folder: Path) -> Path:
    """Pack the installed files as a wheel, after comparing them with the hashes of the installation (RECORD)."""
    here = f"{NAME}/exporters/packaging/{Path(__file__).name}"
    try:
        distribution = importlib.metadata.distribution(NAME)
    except importlib.metadata.PackageNotFoundError:
        distribution = None
    record = distribution.read_text("RECORD") if distribution is not None else None
    if distribution is None or record is None or not _is_same(Path(str(distribution.locate_file(here)))):
        raise OrtkitError("ortkit was not installed from a wheel, so its wheel cannot be made from it", hint=_GIVE_ONE)
    files = {}
    for name, digest, _ in csv.reader(io.StringIO(record)):
        if _is_of_the_wheel(name):
            content = Path(str(distribution.locate_file(name))).read_bytes()
            if digest != _record_digest(content):
                raise BundleError(
                    f"`{distribution.locate_file(name)}` is not the file that was installed: its sha256 differs",
                    hint=f"install ortkit again, or {_GIVE_ONE}",
                )
            files[name] = content
    return _write_wheel(files, folder / FILE)


def _is_same(path: Path) -> bool:
    return path.exists() and path.samefile(__file__)


def _is_of_the_wheel(name: str) -> bool:
    """Whether a path of RECORD was in the wheel: not a script, compiled module or note of the installer."""
    top, _, rest = name.partition("/")
    if top == NAME:
        return not name.endswith(".pyc")
    return top == f"{NAME}-{__version__}.dist-info" and (rest in _METADATA or rest.startswith("licenses/"))


def _record_digest(content: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def _write_wheel(files: dict[str, bytes], path: Path) -> Path:
    """Write a wheel that is the same to the byte whenever its files are."""
    rows = io.StringIO()
    writer = csv.writer(rows, lineterminator="\n")
    for name in sorted(files):
        writer.writerow((name, _record_digest(files[name]), len(files[name])))
    record = f"{NAME}-{__version__}.dist-info/RECORD"
    writer.writerow((record, "", ""))
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in [*sorted(files.items()), (record, rows.getvalue().encode("utf-8"))]:
            entry = zipfile.ZipInfo(name, _DATE)
            entry.external_attr = 0o100644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return path


def copy_wheel(wheel: Path, folder: Path) -> None:
    """Copy ortkit's wheel into a wheelhouse."""
    shutil.copyfile(wheel, folder / FILE)
