"""Checks of what the system gives this process: CPU cores, memory, open files, folders, clock, encodings."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

from ...runtime.session.memory import ADDRESS_SPACE, CONTROL_GROUP, RESIDENT, mebibytes
from ...runtime.session.memory_limit import VARIABLE
from .finding import Finding, error, note, ok, warning
from .host import Folder, Host

RELEASED = dt.datetime(2026, 11, 30, tzinfo=dt.UTC)
"""When this code was written: a clock that is before it is wrong."""
_DAY = 86_400
_LITTLE_MEMORY = 192 << 20
"""Bytes: a small embedder in int8 takes about that, libraries included."""
_SWAPPED = 64 << 20
"""Bytes of used swap from which on it is worth a note."""
_OPEN_FILES = 128
"""Libraries, standard streams and files of an LLM, with room for a few outputs."""
_LITTLE_SPACE = 200 << 20
_MEMORY_EXIT = 9
_OTHER_EXIT = 1


def check_cores(host: Host) -> Iterator[Finding]:
    """CPU cores that this process may use: affinity and the quota of the control group."""
    cores = host.cores
    facts: dict[str, Any] = {"host": cores.host, "usable": cores.usable, "quota": cores.quota}
    if cores.quota is not None and cores.quota < 1:
        yield warning(
            "cores",
            f"the control group's CPU quota is {cores.quota:g} cores",
            "the system stops the process for a part of each period, so that the first token and each text wait",
            "raise it to whole cores: `docker run --cpus 2`, or `CPUQuota=200%` in the systemd unit",
            **facts,
        )
    elif cores.quota is not None and cores.quota < cores.affinity and cores.quota != int(cores.quota):
        yield note(
            "cores",
            f"{_counted(cores.usable)} used: {cores.reason}",
            "ortkit uses whole cores, and the rest of the quota is left",
            f"raise the quota to {int(cores.quota) + 1}, or lower it to {cores.usable}",
            **facts,
        )
    else:
        yield ok("cores", f"{_counted(cores.usable)}: {cores.reason}", **facts)


def _counted(cores: int) -> str:
    return f"{cores} core" if cores == 1 else f"{cores} cores"


def check_memory(host: Host) -> Iterator[Finding]:
    """Memory that this process can still allocate, by the system, the control group and `ulimit -v`."""
    limit = host.available_memory
    facts: dict[str, Any] = {
        "available": None if limit is None else limit.left,
        "limited_by": None if limit is None else limit.name,
        "total": host.total_memory,
    }
    if limit is None:
        yield note("memory", "the free memory is not known", "this system does not say", **facts)
    elif limit.left < RESIDENT:
        yield error(
            "memory",
            limit.described,
            f"the libraries that run a model take {mebibytes(RESIDENT)}",
            _memory_action(limit.name),
            _MEMORY_EXIT,
            **facts,
        )
    elif limit.left < _LITTLE_MEMORY:
        yield warning(
            "memory",
            limit.described,
            f"even a small embedder takes about {mebibytes(_LITTLE_MEMORY)}, libraries included",
            _memory_action(limit.name),
            **facts,
        )
    else:
        total = "" if host.total_memory is None else f" of {mebibytes(host.total_memory)}"
        yield ok(
            "memory", f"{mebibytes(limit.left)}{total} can be allocated; the limit is that of {limit.name}", **facts
        )


def _memory_action(name: str) -> str:
    if name == CONTROL_GROUP:
        return "raise it: `docker run --memory 1g`, or `MemoryMax=1G` in the systemd unit"
    if name == VARIABLE:
        return f"raise it: `export {VARIABLE}=1G`"
    if name == ADDRESS_SPACE:
        return "raise it: `ulimit -v unlimited`"
    return "end other programs: `ps --sort -rss -eo rss,comm | head`"


def check_swap(host: Host) -> Iterator[Finding]:
    swap = host.swap
    if swap is None:
        return
    used = swap.total - swap.free
    facts: dict[str, Any] = {"total": swap.total, "used": used}
    if used >= _SWAPPED:
        yield note(
            "swap",
            f"{mebibytes(used)} of {mebibytes(swap.total)} swap are in use",
            "an LLM reads all its weights for each token: once they are swapped out, it is hundreds of times slower",
            "set a limit below the free memory (`--max-memory`), or end other programs",
            **facts,
        )
    elif swap.total:
        yield ok("swap", f"{mebibytes(swap.total)} swap, {mebibytes(used)} in use", **facts)
    else:
        yield ok("swap", "no swap: memory that runs out ends a process instead of slowing all of them", **facts)


def check_open_files(host: Host) -> Iterator[Finding]:
    limit = host.open_files
    if limit is not None and limit < _OPEN_FILES:
        yield warning(
            "open-files",
            f"at most {limit} files may be open",
            "libraries, bundles and connections fail with `Too many open files`",
            "raise it: `ulimit -n 1024`, or `LimitNOFILE=1024` in the systemd unit",
            limit=limit,
        )
    else:
        yield ok("open-files", f"{'any number of' if limit is None else limit} files may be open", limit=limit)


def check_clock(host: Host) -> Iterator[Finding]:
    """The clock must be later than this code, and than the newest file of the installation."""
    shown = _shown(host.now)
    facts: dict[str, Any] = {"now": shown}
    if host.now < RELEASED.timestamp():
        yield warning(
            "clock",
            f"the clock says {shown}, before this version was made",
            "logs are dated wrongly, and files that were changed may look unchanged",
            "set it: `sudo date -s '2027-01-31 12:00'`; a machine without a battery for its clock needs one, or a time "
            "server in its network",
            **facts,
        )
    elif host.newest_file > host.now + _DAY:
        yield warning(
            "clock",
            f"the clock says {shown}, and ortkit was installed on {_shown(host.newest_file)}",
            "the clock was set back, or was wrong when ortkit was installed",
            "set it: `sudo date -s '2027-01-31 12:00'`",
            installed=_shown(host.newest_file),
            **facts,
        )
    else:
        yield ok("clock", f"the clock says {shown}", **facts)


def _shown(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%d %H:%M UTC")


def check_encoding(host: Host) -> Iterator[Finding]:
    """File names and texts should be UTF-8."""
    facts: dict[str, Any] = {"file_names": host.file_encoding, "text": host.text_encoding}
    if host.file_encoding.lower() not in _UTF8:
        yield warning(
            "encoding",
            f"file names are read as {host.file_encoding}",
            "a file or bundle whose name is not ASCII is not found",
            "choose a locale with UTF-8: `export LC_ALL=C.UTF-8`",
            **facts,
        )
    elif host.text_encoding.lower() not in _UTF8:
        yield note(
            "encoding",
            f"the locale's encoding is {host.text_encoding}",
            "ortkit reads and writes UTF-8 all the same; other programs in a pipe may not",
            "choose a locale with UTF-8: `export LC_ALL=C.UTF-8`",
            **facts,
        )
    else:
        yield ok("encoding", "file names and texts are UTF-8", **facts)


_UTF8 = frozenset({"utf-8", "utf8"})


def check_folders(host: Host) -> Iterator[Finding]:
    """Folders that ortkit writes to, and the free space there; a bundle's own folder may be read-only."""
    yield from _check_temporary(host.temporary)
    yield from _check_bundles(host.bundles)
    yield from _check_cache(host.cache)


def _check_temporary(folder: Folder | None) -> Iterator[Finding]:
    if folder is None:
        yield warning(
            "temporary-folder",
            "there is no folder for temporary files that can be written",
            "Python looks for one in TMPDIR, /tmp, /var/tmp and /usr/tmp; exports and unpacking need it",
            "name one: `export TMPDIR=/run/user/1000`, or add `PrivateTmp=yes` to the systemd unit",
        )
    else:
        yield _space_of("temporary-folder", "the folder for temporary files", folder)


def _check_bundles(folder: Folder | None) -> Iterator[Finding]:
    if folder is None or not folder.exists:
        return
    if folder.open_to_others:
        yield warning(
            "bundles-folder",
            f"other users can change the bundles in `{folder.path}`",
            "a graph is a program, which runs with your rights",
            f"let its owner alone write to it: `chmod go-w {folder.path}`",
            **_facts_of(folder),
        )
    elif not folder.writable:
        yield ok("bundles-folder", f"`{folder.path}` is read-only, which is enough to run bundles", **_facts_of(folder))
    else:
        yield _space_of("bundles-folder", "the folder of bundles", folder)


def _check_cache(folder: Folder | None) -> Iterator[Finding]:
    if folder is None:
        yield ok("cache-folder", "nothing is cached")
    elif not folder.writable or folder.open_to_others:
        problem = "cannot be written" if not folder.writable else "can be changed by other users"
        yield note(
            "cache-folder",
            f"the folder for caches, `{folder.path}`, {problem}",
            "nothing is cached: what CoreML compiles is compiled at each opening",
            "name another one: `export ORTKIT_CACHE=/var/cache/ortkit`",
            **_facts_of(folder),
        )
    else:
        yield _space_of("cache-folder", "the folder for caches", folder)


def _space_of(check: str, name: str, folder: Folder) -> Finding:
    facts = _facts_of(folder)
    if folder.free is not None and folder.free < _LITTLE_SPACE:
        return warning(
            check,
            f"{mebibytes(folder.free)} are free in {name}, `{folder.path}`",
            "an output, an unpacked bundle or an update may not fit; ortkit then stops and leaves the old file",
            f"free space: `du -xh {folder.path} | sort -h | tail`",
            **facts,
        )
    free = "free space not known" if folder.free is None else f"{mebibytes(folder.free)} free"
    return ok(check, f"{name}: `{folder.path}`, {free}", **facts)


def _facts_of(folder: Folder) -> dict[str, Any]:
    return {"path": str(folder.path), "writable": folder.writable, "free": folder.free}
