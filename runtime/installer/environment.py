"""The Python environment of a release, made without `venv`, `ensurepip` and pip, and the commands in PREFIX/bin."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

from ..trust.policy import VARIABLE
from .files import FOLDER_MODE, write_text
from .host import Host, dotted

ENVIRONMENT = "python"
"""Folder of a release."""
MARK = "# Written by the installer of ortkit kits; the next installation writes it again."
"""A line of each command, by which the installer recognizes its own."""
_COMMAND = """#!/bin/sh
{mark}
prefix={prefix}
{release}
python=$release/python/bin/python
if [ ! -x "$python" ]; then
    wanted={python}
    echo "error: \\`$wanted\\`, which this release was installed for, is not there any more" >&2
    printf '\\nhint: %s\\n' "install Python {version} again, or a kit for the Python that is there" >&2
    exit 1
fi
{run}
"""
_CURRENT = """release=$(cd -P "$prefix/current" 2>/dev/null && [ -f release.json ] && pwd) || {
    echo "error: there is no release at \\`$prefix/current\\`" >&2
    printf '\\nhint: %s\\n' "\\`$prefix/bin/ortkit-install status\\` shows what is there" >&2
    exit 1
}"""
_ANY = """release=
for found in "$prefix"/releases/[0-9]* "$prefix/current"; do
    [ ! -e "$found/release.json" ] || release=$(cd -P "$found" && pwd)
done
[ -n "$release" ] || { echo "error: there is no release in \\`$prefix/releases\\`" >&2; exit 1; }"""
_RUN_ORTKIT = """ORTKIT_BUNDLES=${ORTKIT_BUNDLES:-$release/bundles}
export ORTKIT_BUNDLES
exec "$python" -I -m ortkit "$@\""""
_RUN_INSTALLER = 'exec "$python" -I -m ortkit.runtime.installer --prefix "$prefix" "$@"'


class Environment:
    """A folder that Python takes for a virtual environment (PEP 405): its packages are those of the kit alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def site(self, host: Host) -> Path:
        """Its site-packages."""
        return self.folder / "lib" / f"python{dotted(host.python[:2])}" / "site-packages"

    def create(self, host: Host) -> None:
        """Make it for a Python that is installed on this machine."""
        executable = Path(os.path.realpath(host.executable))
        for folder in (self.python.parent, self.site(host)):
            folder.mkdir(parents=True)
        self.python.symlink_to(executable)
        for name in ("python3", f"python{dotted(host.python[:2])}"):
            self.python.with_name(name).symlink_to(self.python.name)
        settings = {
            "home": executable.parent,
            "include-system-site-packages": "false",
            "version": dotted(host.python),
            "executable": executable,
        }
        text = "".join(f"{name} = {value}\n" for name, value in settings.items())
        (self.folder / "pyvenv.cfg").write_text(text, encoding="utf-8")

    def run(self, *arguments: str, bundles: Path, policy: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run `ortkit` in it, as the command in PREFIX/bin does; raises OSError where Python cannot be started."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment["ORTKIT_BUNDLES"] = str(bundles)
        if policy is not None:
            environment[VARIABLE] = str(policy)
        return subprocess.run(
            [str(self.python), "-I", "-m", "ortkit", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )


def write_commands(prefix: Path, host: Host) -> None:
    """Write PREFIX/bin/ortkit and PREFIX/bin/ortkit-install; both are replaced at once."""
    folder = prefix / "bin"
    folder.mkdir(exist_ok=True, mode=FOLDER_MODE)
    for name, (release, run) in COMMANDS.items():
        text = _COMMAND.format(
            mark=MARK,
            prefix=shlex.quote(str(prefix)),
            release=release,
            python=shlex.quote(os.path.realpath(host.executable)),
            version=dotted(host.python[:2]),
            run=run,
        )
        path = folder / name
        if not path.is_file() or path.read_text(encoding="utf-8", errors="replace") != text:
            write_text(path, text, 0o755)


COMMANDS = {"ortkit": (_CURRENT, _RUN_ORTKIT), "ortkit-install": (_ANY, _RUN_INSTALLER)}
"""Name of a command -> how it finds its release, and what it runs."""


def is_own_command(path: Path) -> bool:
    """Whether a file was written by `write_commands`."""
    try:
        return MARK in path.read_text(encoding="utf-8", errors="replace").splitlines()[:2]
    except OSError:
        return False
