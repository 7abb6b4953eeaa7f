"""Install a kit beside what is there, check it, and only then have `current` lead to it."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..bundle.folder import SBOM_FILE
from ..errors import BundleError, NotFoundError, NotTrustedError, OrtkitError, OutputError
from ..pack.oci_layout import Artifact, Blob
from ..trust.signature import Signer
from .checks import CheckError, check_release, check_starts, check_target
from .environment import ENVIRONMENT, Environment, write_commands
from .files import FOLDER_MODE, flush_all, remove_tree, share
from .host import Host
from .installation import BUNDLES, Installation, ReleaseRecord
from .kit_file import Kit
from .kit_format import SBOM, KitFacts
from .trial_policy import record_releases
from .trust import Trust, keep_keys
from .wheel_file import Site, WheelName

_SBOMS = "sbom"
"""Folder of a release."""
_ASK = "show these lines to who made the kit"
_WHOLE_KIT = "use a kit that was made without `--since` and `--have`"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """What the user chose."""

    trusted_keys: Sequence[Path] = ()
    allow_unsigned: bool = False
    allow_downgrade: bool = False
    reinstall: bool = False
    other_kit: bool = False
    """Whether the kit may be of another name than the one that is installed."""


def install(kit: Kit, installation: Installation, options: Options, say: Say, host: Host | None = None) -> int:
    """Install a kit, or update to it; returns the number of the release that is current then.

    Everything that can be known before anything is written is checked first: the signature, what the kit is for, the
    release counter, what it leaves out, and the free space.
    """
    # Before the keys in it are read, which would be refused too.
    installation.check_owner()
    trust = Trust.of(installation, options.trusted_keys)
    if trust.decided_by is not None and options.trusted_keys:
        say(f"note: the policy `{trust.decided_by}` alone decides which keys count, not `--trusted-key`")
    signer = trust.check(kit, allow_unsigned=options.allow_unsigned)
    say(f"signed by {signer}" if signer is not None else "warning: nothing shows who made this kit")
    facts = kit.facts()
    host = host or Host.this()
    host.check(facts.needs, str(kit.path))
    for wheel in kit.wheels.layers:
        WheelName.of(wheel).check(host)
    with _prepared_prefix(installation, kit, facts):
        if leftovers := installation.remove_leftovers():
            say(f"removed what an interrupted run left: {', '.join(leftovers)}")
        current = installation.current()
        if not options.other_kit:
            _check_name(facts, installation, kit, current)
        _check_counter(facts, installation, kit, allow_downgrade=options.allow_downgrade)
        found = _installed(kit, installation)
        if found is not None and found == current and not options.reinstall:
            say(f"the kit is installed already, as release {found}")
            number = found
        elif found is not None and installation.record(found).previous == current and not options.reinstall:
            say(f"release {found} was made from this kit before")
            check_release(
                installation.environment(found),
                installation.folder(found) / BUNDLES,
                say,
                allow_downgrade=options.allow_downgrade,
            )
            number = found
        else:
            number = _Addition(kit, facts, installation, options, host, say).release(signer)
        write_commands(installation.prefix, host)
        _switch(installation, number, current, allow_downgrade=options.allow_downgrade)
        installation.remember(facts.name, facts.release)
        keep_keys(installation, trust)
        installation.keep(number, installation.record(number).previous)
    return number


@contextmanager
def _prepared_prefix(installation: Installation, kit: Kit, facts: KitFacts) -> Iterator[None]:
    """Check that the release can be written, create the folder, and lock it."""
    installation.check_prefix()
    have = Have.of(installation)
    check_target(installation.prefix, _needed_bytes(kit, facts, have))
    try:
        installation.prefix.mkdir(parents=True, exist_ok=True, mode=FOLDER_MODE)
        with installation.locked():
            yield
    except OrtkitError:
        raise
    except OSError as error:
        raise _cannot_write(error, installation.prefix) from error


def _cannot_write(error: OSError, prefix: Path) -> OutputError:
    hint = None
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "make room and run the installer again; what is installed was not changed"
    return OutputError(f"`{error.filename or prefix}` cannot be written: {error.strerror or error}", hint=hint)


def _check_name(facts: KitFacts, installation: Installation, kit: Kit, current: int | None) -> None:
    """Raise NotTrustedError for a kit of another name: it was made for another appliance, and has another counter."""
    installed = facts.name
    # A kit may replace a release whose record is damaged.
    with suppress(OrtkitError):
        installed = installation.record(current).kit if current is not None else facts.name
    if installed != facts.name:
        raise NotTrustedError(
            f"`{kit.path}` is a kit named `{facts.name}`, and `{installed}` is installed in `{installation.prefix}`",
            hint=f"an update has the name of what it updates (`ortkit kit --name {installed}`); to replace "
            f"`{installed}` by this kit, add `--other-kit`, or install it beside with `--prefix`",
        )


def _check_counter(facts: KitFacts, installation: Installation, kit: Kit, *, allow_downgrade: bool) -> None:
    highest = installation.highest(facts.name)
    if facts.release < highest and not allow_downgrade:
        stated = f"is release {facts.release}" if facts.release else "has no release counter"
        raise NotTrustedError(
            f"`{kit.path}` {stated}, and release {highest} of `{facts.name}` was installed in `{installation.prefix}`",
            hint="an older kit may have faults that a newer one repairs; to install it all the same, add "
            "`--allow-downgrade`",
        )


def _installed(kit: Kit, installation: Installation) -> int | None:
    """The newest release that was made from this kit."""
    for number in reversed(installation.numbers()):
        with suppress(OrtkitError):
            if installation.record(number).digest == kit.digest:
                return number
    return None


@dataclass(frozen=True)
class Have:
    """What the releases of an installation have, by sha256."""

    files: Mapping[str, Path]
    """sha256 -> file of a bundle."""
    wheels: Mapping[str, tuple[str, Path]]
    """sha256 of a wheel -> its name, and the site-packages with its files."""

    @classmethod
    def of(cls, installation: Installation) -> Have:
        files: dict[str, Path] = {}
        wheels: dict[str, tuple[str, Path]] = {}
        for number in installation.numbers():
            with suppress(OrtkitError):
                record = installation.record(number)
                folder = installation.folder(number)
                for name, listed in record.bundles.items():
                    files |= {sha256: folder / BUNDLES / name / path for path, sha256 in listed.items()}
                sites = sorted((folder / ENVIRONMENT / "lib").glob("python*/site-packages"))
                wheels |= {sha256: (wheel, site) for wheel, sha256 in record.wheels.items() for site in sites[:1]}
        return cls(files, wheels)

    def digests(self) -> list[str]:
        """For `ortkit kit --have`."""
        return sorted(f"sha256:{sha256}" for sha256 in {*self.files, *self.wheels})


def _needed_bytes(kit: Kit, facts: KitFacts, have: Have) -> int:
    """Bytes that will be written; raises BundleError where the kit leaves out what is not here."""
    wheels, bundles = kit.wheels, kit.bundles
    for artifact in (wheels, *bundles.values()):
        here = have.wheels if artifact is wheels else have.files
        lacking = [name for name, blob in kit.layout.missing(artifact).items() if blob.sha256 not in here]
        if lacking:
            raise BundleError(
                f"the kit leaves out `{lacking[0]}` of `{artifact.name}`, which is not installed here",
                hint=f"it was made for a machine that has an earlier release: {_WHOLE_KIT}",
            )
    files = [blob for artifact in bundles.values() for blob in _files_of(artifact).values()]
    new = [blob for blob in files if blob.sha256 not in have.files]
    unpacked = {name: blob for name, blob in wheels.layers.items() if blob.sha256 not in have.wheels}
    # A wheel and its files are there at the same time.
    return sum(blob.size for blob in (*new, *unpacked.values())) + sum(facts.unpacked.get(name, 0) for name in unpacked)


@dataclass(frozen=True)
class _Addition:
    """Puts a release together."""

    kit: Kit
    facts: KitFacts
    installation: Installation
    options: Options
    host: Host
    say: Say

    def release(self, signer: Signer | None) -> int:
        """Add the release of the kit, checked on this machine; returns its number. Nothing stays of a failure."""
        folder = self.installation.prepare()
        try:
            self._fill(folder)
            # Before the check, which takes long: a system that fails then has lost nothing but time.
            flush_all(folder)
            environment = Environment(folder / ENVIRONMENT)
            previous = self.installation.current()
            check_release(environment, folder / BUNDLES, self.say, allow_downgrade=self.options.allow_downgrade)
            record = ReleaseRecord(
                kit=self.facts.name,
                digest=self.kit.digest,
                release=self.facts.release,
                ortkit=self.facts.ortkit,
                previous=previous,
                signer=str(signer) if signer is not None else None,
                bundles={name: _hashes(_files_of(artifact)) for name, artifact in self.kit.bundles.items()},
                wheels=_hashes(self.kit.wheels.layers),
            )
            return self.installation.add(folder, record)
        except CheckError as error:
            kept = f"release {previous} is in use as before" if previous is not None else "nothing was installed"
            raise CheckError(error.message, code=error.exit_code, hint=f"{kept}; {error.hint or _ASK}") from error
        finally:
            # Nothing where the release was added.
            with suppress(OSError):
                remove_tree(folder)

    def _fill(self, folder: Path) -> None:
        kit, have = self.kit, Have.of(self.installation)
        environment = Environment(folder / ENVIRONMENT)
        environment.create(self.host)
        self._unpack_wheels(folder, environment.site(self.host), have)
        (folder / BUNDLES).mkdir()
        (folder / _SBOMS).mkdir()
        for name, artifact in kit.bundles.items():
            self.say(f"copying {name}")
            self._copy_bundle(artifact, folder / BUNDLES / name, have)
            if SBOM_FILE in artifact.layers:
                kit.layout.extract(artifact, folder / _SBOMS / name, names={SBOM_FILE})
        for artifact in kit.layout.artifacts:
            if artifact.kind == SBOM:
                kit.layout.extract(artifact, folder / _SBOMS / artifact.name)

    def _unpack_wheels(self, folder: Path, site_folder: Path, have: Have) -> None:
        layout, wheels = self.kit.layout, self.kit.wheels
        site = Site(site_folder)
        new = []
        for wheel, blob in wheels.layers.items():
            known, record = have.wheels.get(blob.sha256), self.facts.records.get(wheel)
            usable = known if record is not None and known is not None and known[0] == wheel else None
            if usable is None or not site.share(WheelName.of(wheel), usable[1], str(record)):
                new.append(wheel)
        lacking = [wheel for wheel in new if wheel in layout.missing(wheels)]
        if lacking:
            raise BundleError(
                f"the kit leaves out `{lacking[0]}`, and its installed files were changed", hint=_WHOLE_KIT
            )
        self.say(f"unpacking {len(new)} packages, sharing {len(wheels.layers) - len(new)}")
        # Copied before they are opened: what is unpacked is what was hashed, whatever a stick answers the second time.
        copies = folder / "wheels"
        for wheel in new:
            layout.extract(wheels, copies, names={wheel})
            site.unpack(copies / wheel)
            shutil.rmtree(copies)

    def _copy_bundle(self, artifact: Artifact, target: Path, have: Have) -> None:
        """Share the files that an earlier release has unchanged, and copy the others."""
        layout = self.kit.layout
        target.mkdir()
        files, shared = _files_of(artifact), set()
        for name, blob in files.items():
            source, path = have.files.get(blob.sha256), target / name
            if source is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                if share(source, path, blob.sha256):
                    shared.add(name)
        rest = set(files) - shared
        lacking = sorted(rest & set(layout.missing(artifact)))
        if lacking:
            raise BundleError(
                f"the kit leaves out `{lacking[0]}` of `{artifact.name}`, and the installed copy of it was changed",
                hint=_WHOLE_KIT,
            )
        layout.extract(artifact, target, names=rest)


def _hashes(layers: Mapping[str, Blob]) -> dict[str, str]:
    return {name: blob.sha256 for name, blob in layers.items()}


def _files_of(artifact: Artifact) -> dict[str, Blob]:
    """The files of a bundle's folder."""
    return {name: blob for name, blob in artifact.layers.items() if name != SBOM_FILE}


def _switch(installation: Installation, number: int, previous: int | None, *, allow_downgrade: bool) -> None:
    """Switch to a release, see that it starts from where it is now, and record its bundles; else switch back."""
    if number == previous:
        record_releases(installation.bundles(number), allow_downgrade=allow_downgrade)
        return
    installation.switch(number)
    try:
        check_starts(installation.environment(number), installation.folder(number) / BUNDLES)
        # After the switch, because the bundles of the release before are refused from then on.
        record_releases(installation.bundles(number), allow_downgrade=allow_downgrade)
    except OrtkitError:
        if previous is not None:
            installation.switch(previous)
        else:
            installation.link.unlink()
        installation.remove(number)
        raise


def rollback(installation: Installation, to: int | None, say: Say) -> int:
    """Have `current` lead to the release before it, or to another one; returns its number."""
    _check_installed(installation)
    with installation.locked():
        installation.remove_leftovers()
        number = to
        if number is None:
            current = installation.current()
            if current is None:
                raise NotFoundError(f"nothing is installed in `{installation.prefix}`")
            number = installation.record(current).previous
            if number is None or number not in installation.numbers():
                raise NotFoundError(
                    f"there is no release before {current} in `{installation.prefix}`",
                    hint=f"`{installation.prefix}/bin/ortkit-install status` lists the releases",
                )
        installation.record(number)
        check_starts(installation.environment(number), installation.folder(number) / BUNDLES)
        say(f"switching to release {number}")
        # Before the switch: the newer bundles are accepted with either.
        record_releases(installation.bundles(number), allow_downgrade=True)
        installation.switch(number)
    return number


def uninstall(installation: Installation) -> list[str]:
    """Remove an installation; returns the names of what others left in its folder."""
    _check_installed(installation)
    installation.check_prefix()
    with installation.locked():
        return installation.uninstall()


def _check_installed(installation: Installation) -> None:
    """Raise NotFoundError for a folder that has nothing of an installation, and nothing is written to."""
    if not installation.prefix.is_dir() or not (installation.releases.is_dir() or os.path.lexists(installation.link)):
        raise NotFoundError(f"nothing is installed in `{installation.prefix}`", hint="name its folder with `--prefix`")
