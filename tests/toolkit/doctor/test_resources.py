# ruff: noqa: E501 - texts as they are printed
from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ortkit.runtime.session.cores import Cores
from ortkit.runtime.session.memory import Limit
from ortkit.toolkit.doctor.finding import Finding
from ortkit.toolkit.doctor.host import Folder, Host, Swap
from ortkit.toolkit.doctor.resources import (
    check_clock,
    check_cores,
    check_encoding,
    check_folders,
    check_memory,
    check_open_files,
    check_swap,
)
from tests.toolkit.doctor.hosts import NOW, host, text_of

Check = Callable[[Host], Iterator[Finding]]
GROUP = "the memory limit of the control group"
SYSTEM = "the system, as MemAvailable"
DATE = "do: set it: `sudo date -s '2027-01-31 12:00'`"
FULL = (
    "why: an output, an unpacked bundle or an update may not fit; ortkit then stops and leaves the old file\n"
    "do: free space: `du -xh {} | sort -h | tail`"
)


@pytest.mark.parametrize(
    ("check", "changes", "expected"),
    [
        (check_cores, {}, "ok cores: 4 cores: the host has 4 cores"),
        (
            check_cores,
            {"cores": Cores(4, 4, 2.0)},
            "ok cores: 2 cores: the control group's quota is 2, the host has 4 cores",
        ),
        (
            check_cores,
            {"cores": Cores(4, 4, 2.5)},
            (
                "note cores: 2 cores used: the control group's quota is 2.5, the host has 4 cores\n"
                "why: ortkit uses whole cores, and the rest of the quota is left\n"
                "do: raise the quota to 3, or lower it to 2"
            ),
        ),
        (
            check_cores,
            {"cores": Cores(4, 4, 0.5)},
            (
                "warning cores: the control group's CPU quota is 0.5 cores\n"
                "why: the system stops the process for a part of each period, so that the first token and each text wait\n"
                "do: raise it to whole cores: `docker run --cpus 2`, or `CPUQuota=200%` in the systemd unit"
            ),
        ),
        (
            check_memory,
            {},
            "ok memory: 2,048 MiB of 4,096 MiB can be allocated; the limit is that of the system, as MemAvailable",
        ),
        (check_memory, {"memory": ()}, "note memory: the free memory is not known\nwhy: this system does not say"),
        (
            check_memory,
            {"memory": (Limit(2 << 30, SYSTEM), Limit(100 << 20, GROUP))},
            (
                "warning memory: 100 MiB are left by the memory limit of the control group\n"
                "why: even a small embedder takes about 192 MiB, libraries included\n"
                "do: raise it: `docker run --memory 1g`, or `MemoryMax=1G` in the systemd unit"
            ),
        ),
        (
            check_memory,
            {"memory": (Limit(20 << 20, SYSTEM),)},
            (
                "error memory: 20 MiB are left by the system, as MemAvailable\n"
                "why: the libraries that run a model take 48 MiB\n"
                "do: end other programs: `ps --sort -rss -eo rss,comm | head`\nexit: 9"
            ),
        ),
        (
            check_memory,
            {"memory": (Limit(90 << 20, "the limit of `ulimit -v`"),)},
            (
                "warning memory: 90 MiB are left by the limit of `ulimit -v`\n"
                "why: even a small embedder takes about 192 MiB, libraries included\ndo: raise it: `ulimit -v unlimited`"
            ),
        ),
        (
            check_memory,
            {"memory": (Limit(64 << 20, "ORTKIT_MAX_MEMORY"),)},
            (
                "warning memory: 64 MiB are left by ORTKIT_MAX_MEMORY\n"
                "why: even a small embedder takes about 192 MiB, libraries included\n"
                "do: raise it: `export ORTKIT_MAX_MEMORY=1G`"
            ),
        ),
        (
            check_swap,
            {},
            "ok swap: no swap: memory that runs out ends a process instead of slowing all of them",
        ),
        (check_swap, {"swap": Swap(1 << 30, 1 << 30)}, "ok swap: 1,024 MiB swap, 0 MiB in use"),
        (
            check_swap,
            {"swap": Swap(1 << 30, 824 << 20)},
            (
                "note swap: 200 MiB of 1,024 MiB swap are in use\n"
                "why: an LLM reads all its weights for each token: once they are swapped out, it is hundreds of times "
                "slower\n"
                "do: set a limit below the free memory (`--max-memory`), or end other programs"
            ),
        ),
        (check_open_files, {}, "ok open-files: 1024 files may be open"),
        (check_open_files, {"open_files": None}, "ok open-files: any number of files may be open"),
        (
            check_open_files,
            {"open_files": 64},
            (
                "warning open-files: at most 64 files may be open\n"
                "why: libraries, bundles and connections fail with `Too many open files`\n"
                "do: raise it: `ulimit -n 1024`, or `LimitNOFILE=1024` in the systemd unit"
            ),
        ),
        (check_clock, {}, "ok clock: the clock says 2027-01-15 08:00 UTC"),
        (
            check_clock,
            {"now": 60.0, "newest_file": 0.0},
            (
                "warning clock: the clock says 1970-01-01 00:01 UTC, before this version was made\n"
                "why: logs are dated wrongly, and files that were changed may look unchanged\n"
                f"{DATE}; a machine without a battery for its clock needs one, or a time server in its network"
            ),
        ),
        (
            check_clock,
            {"newest_file": NOW + 10 * 86_400},
            (
                "warning clock: the clock says 2027-01-15 08:00 UTC, and ortkit was installed on 2027-01-25 08:00 UTC\n"
                f"why: the clock was set back, or was wrong when ortkit was installed\n{DATE}"
            ),
        ),
        (check_encoding, {}, "ok encoding: file names and texts are UTF-8"),
        (
            check_encoding,
            {"file_encoding": "ascii"},
            (
                "warning encoding: file names are read as ascii\n"
                "why: a file or bundle whose name is not ASCII is not found\n"
                "do: choose a locale with UTF-8: `export LC_ALL=C.UTF-8`"
            ),
        ),
        (
            check_encoding,
            {"text_encoding": "iso8859-1"},
            (
                "note encoding: the locale's encoding is iso8859-1\n"
                "why: ortkit reads and writes UTF-8 all the same; other programs in a pipe may not\n"
                "do: choose a locale with UTF-8: `export LC_ALL=C.UTF-8`"
            ),
        ),
    ],
)
def test_resources(check: Check, changes: dict[str, Any], expected: str) -> None:
    assert [text_of(found) for found in check(host(**changes))] == [expected]


def test_a_system_without_swap_information() -> None:
    assert list(check_swap(host(swap=None))) == []


def folder(path: str, **changes: Any) -> Folder:
    return Folder(Path(path), **({"exists": True, "writable": True, "free": 8 << 30} | changes))


def folders(**changes: Any) -> list[str]:
    return [text_of(found) for found in check_folders(host(**changes))]


def test_good_folders() -> None:
    """Bundles may be read-only, and the cache is made when it is needed."""
    assert folders() == [
        "ok temporary-folder: the folder for temporary files: `/tmp`, 8,192 MiB free",
        "ok bundles-folder: `bundles` is read-only, which is enough to run bundles",
        "ok cache-folder: the folder for caches: `/home/ada/.cache/ortkit`, 8,192 MiB free",
    ]
    assert folders(bundles=folder("bundles", free=None))[1] == (
        "ok bundles-folder: the folder of bundles: `bundles`, free space not known"
    )
    assert folders(cache=None)[2] == "ok cache-folder: nothing is cached"
    assert len(folders(bundles=folder("bundles", exists=False))) == 2


def test_no_temporary_folder() -> None:
    assert folders(temporary=None)[0] == (
        "warning temporary-folder: there is no folder for temporary files that can be written\n"
        "why: Python looks for one in TMPDIR, /tmp, /var/tmp and /usr/tmp; exports and unpacking need it\n"
        "do: name one: `export TMPDIR=/run/user/1000`, or add `PrivateTmp=yes` to the systemd unit"
    )


def test_full_disks() -> None:
    little = 50 << 20
    found = folders(
        temporary=folder("/tmp", free=little), bundles=folder("/srv/b", free=little), cache=folder("/c", free=little)
    )

    assert found == [
        "warning temporary-folder: 50 MiB are free in the folder for temporary files, `/tmp`\n" + FULL.format("/tmp"),
        "warning bundles-folder: 50 MiB are free in the folder of bundles, `/srv/b`\n" + FULL.format("/srv/b"),
        "warning cache-folder: 50 MiB are free in the folder for caches, `/c`\n" + FULL.format("/c"),
    ]


def test_folders_that_others_can_change() -> None:
    found = folders(bundles=folder("bundles", open_to_others=True), cache=folder("/c", open_to_others=True))

    assert found[1:] == [
        (
            "warning bundles-folder: other users can change the bundles in `bundles`\n"
            "why: a graph is a program, which runs with your rights\n"
            "do: let its owner alone write to it: `chmod go-w bundles`"
        ),
        (
            "note cache-folder: the folder for caches, `/c`, can be changed by other users\n"
            "why: nothing is cached: what CoreML compiles is compiled at each opening\n"
            "do: name another one: `export ORTKIT_CACHE=/var/cache/ortkit`"
        ),
    ]
    assert (
        "note cache-folder: the folder for caches, `/c`, cannot be written\n"
        in folders(cache=folder("/c", writable=False))[2]
    )
