"""What the checks know of this machine. They are functions of a `Host`, so that tests can make one of any kind."""

from __future__ import annotations

import codecs
import contextlib
import locale
import os
import platform
import resource
import shutil
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ...runtime.arguments import size_of
from ...runtime.cache_folder import cache_folder
from ...runtime.errors import InputError
from ...runtime.host_facts import Libc, cpu_flags, find_libc, numbers_of
from ...runtime.output_path import bundles_folder
from ...runtime.session.cores import Cores, find_cores
from ...runtime.session.memory import Limit, limits_of_memory
from ...runtime.session.memory_limit import VARIABLE
from .packages import Imported, Package, find_packages, import_all

_MEMINFO = Path("/proc/meminfo")
_ENVIRON = Path("/proc/self/environ")


@dataclass(frozen=True)
class Swap:
    """Swap space in bytes."""

    total: int
    free: int


@dataclass(frozen=True)
class Folder:
    """A folder that ortkit uses."""

    path: Path
    exists: bool
    writable: bool
    free: int | None
    """Free bytes for this user on its file system; None where the system does not say."""
    open_to_others: bool = False
    """Whether other users can change what is in it."""


@dataclass(frozen=True)
class Host:
    """Facts about this machine and this process."""

    system: str = "Linux"
    """As `platform.system()`."""
    machine: str = "x86_64"
    bits: int = 64
    """Of a pointer of this Python."""
    libc: Libc = field(default_factory=Libc)
    macos: tuple[int, ...] = ()
    """The version of macOS; empty elsewhere."""
    python: tuple[int, ...] = (3, 11, 0)
    implementation: str = "CPython"
    free_threaded: bool = False
    executable: str = "python3"
    cpu_flags: frozenset[str] | None = None
    """Linux's names of the CPU's features; None where the system does not say."""
    cores: Cores = field(default_factory=lambda: Cores(1, 1, None))
    memory: tuple[Limit, ...] = ()
    """Limits on the memory of this process."""
    total_memory: int | None = None
    swap: Swap | None = None
    open_files: int | None = None
    """Limit on open files; None without one."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """The environment that this process was started with."""
    token_files: tuple[str, ...] = ()
    """Files with a token of the Hub."""
    file_encoding: str = "utf-8"
    """Encoding of file names."""
    text_encoding: str = "utf-8"
    """Encoding of text that Python programs read and write by default."""
    now: float = 0.0
    """Seconds since 1970."""
    newest_file: float = 0.0
    """Time of the newest file of ortkit."""
    packages: tuple[Package, ...] = ()
    """What is installed, of the packages that ortkit needs."""
    imports: Mapping[str, Imported] = field(default_factory=dict)
    """What happened when a process of its own imported each module."""
    bundles: Folder | None = None
    """The folder of bundles, `bundles` or ORTKIT_BUNDLES."""
    cache: Folder | None = None
    """The folder for caches; None where nothing is cached."""
    temporary: Folder | None = None
    """The folder for temporary files; None where there is none that can be written."""

    @property
    def available_memory(self) -> Limit | None:
        """The smallest limit on memory."""
        return min(self.memory, key=lambda limit: limit.left, default=None)

    def imports_well(self, *modules: str) -> bool:
        """Whether all these modules could be imported."""
        return all(module in self.imports and self.imports[module].works for module in modules)


def look_at_host() -> Host:
    """Look at this machine; raises nothing for what is missing or broken."""
    environment = initial_environment()
    return Host(
        system=platform.system(),
        machine=platform.machine(),
        bits=64 if sys.maxsize > 1 << 32 else 32,
        libc=find_libc(),
        macos=numbers_of(platform.mac_ver()[0]),
        python=tuple(sys.version_info[:3]),
        implementation=platform.python_implementation(),
        free_threaded=bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
        executable=sys.executable,
        cpu_flags=cpu_flags(),
        cores=find_cores(),
        memory=(*limits_of_memory(), *limit_of_variable(environment)),
        total_memory=meminfo("MemTotal"),
        swap=find_swap(),
        open_files=find_open_files(),
        environment=environment,
        token_files=find_token_files(environment),
        file_encoding=sys.getfilesystemencoding(),
        text_encoding=codecs.lookup(locale.getpreferredencoding(do_setlocale=False)).name,
        now=time.time(),
        newest_file=newest_time(Path(__file__).resolve().parents[2]),
        packages=find_packages(),
        imports=import_all(),
        bundles=look_at_folder(bundles_folder()),
        cache=None if (cache := cache_folder()) is None else look_at_folder(cache),
        temporary=find_temporary(),
    )


def initial_environment(path: Path = _ENVIRON) -> Mapping[str, str]:
    """The environment at the start of this process: ortkit changes its own, to switch off telemetry."""
    try:
        entries = path.read_bytes().split(b"\0")
    except OSError:
        return dict(os.environ)
    pairs = (os.fsdecode(entry).partition("=") for entry in entries if b"=" in entry)
    return {name: value for name, _, value in pairs}


def limit_of_variable(environment: Mapping[str, str]) -> Iterator[Limit]:
    """The limit that ORTKIT_MAX_MEMORY sets; none for one that is not valid, which is a finding of its own."""
    with contextlib.suppress(InputError):
        if value := environment.get(VARIABLE):
            yield Limit(size_of(value, VARIABLE), VARIABLE)


def meminfo(field_name: str, path: Path = _MEMINFO) -> int | None:
    """A size from /proc/meminfo in bytes; None where the system does not say."""
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field_name}:")), None)
    except (OSError, ValueError, IndexError):
        return None


def find_swap(path: Path = _MEMINFO) -> Swap | None:
    total, free = meminfo("SwapTotal", path), meminfo("SwapFree", path)
    return None if total is None or free is None else Swap(total, free)


def find_open_files() -> int | None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def find_token_files(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Files in which huggingface_hub keeps tokens; they are not read."""
    home = environment.get("HF_HOME")
    if home is None:
        cache = environment.get("XDG_CACHE_HOME") or f"{environment.get('HOME', '')}/.cache"
        home = f"{cache}/huggingface"
    places = (environment.get("HF_TOKEN_PATH"), f"{home}/token", f"{home}/stored_tokens")
    return tuple(place for place in places if place and os.path.isfile(place))  # noqa: PTH113 - never raises


def newest_time(package: Path) -> float:
    """When the newest file of ortkit was written: the clock of an appliance must not be before it."""
    try:
        return max((path.stat().st_mtime for path in package.rglob("*.py")), default=0.0)
    except OSError:
        return 0.0


def look_at_folder(path: Path) -> Folder:
    """Look at a folder; for one that is not there, at the nearest parent, where it would be made."""
    try:
        exists = path.is_dir()
        nearest = next((parent for parent in (path, *path.absolute().parents) if parent.exists()), path)
        mode = path.stat().st_mode if exists else 0
    except OSError:
        return Folder(path, exists=False, writable=False, free=None)
    try:
        free: int | None = shutil.disk_usage(nearest).free
    except OSError:
        free = None
    # With the sticky bit, others can add files and change none.
    shared = bool(mode & 0o022) and not mode & 0o1000
    return Folder(path, exists, os.access(nearest, os.W_OK | os.X_OK), free, shared)


def find_temporary() -> Folder | None:
    try:
        return look_at_folder(Path(tempfile.gettempdir()))
    # It looks for a folder that it can write to.
    except OSError:
        return None
