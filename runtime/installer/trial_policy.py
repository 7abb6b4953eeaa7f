"""The machine's policy while a new release is checked: the same, but what is recorded of it goes elsewhere."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..bundle.folder import MANIFEST
from ..trust.policy import Policy
from ..trust.public_key import TrustedKey
from ..trust.releases import counter_of

_LARGEST_MANIFEST = 1 << 20


@contextmanager
def trial_policy(*, allow_downgrade: bool = False) -> Iterator[Path | None]:
    """A policy with a copy of the recorded releases, for ORTKIT_POLICY; None where no signature is required.

    With `allow_downgrade`, no release is recorded in it.
    """
    policy = Policy.current()
    if not policy.require_signature:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="ortkit-policy-") as folder:
        state = Path(folder) / "releases.json"
        if not allow_downgrade:
            with suppress(FileNotFoundError):
                shutil.copyfile(policy.releases.path, state)
        keys = [key.origin for key in policy.trusted if isinstance(key, TrustedKey)]
        certificates = [key.origin for key in policy.trusted if not isinstance(key, TrustedKey)]
        settings = {
            "trusted_keys": sorted(set(keys)),
            "trusted_certificates": sorted(set(certificates)),
            "require_signature": True,
            "state": str(state),
            "always_hash": policy.always_hash,
        }
        path = Path(folder) / "policy.toml"
        # Strings, lists and booleans are the same in JSON and TOML.
        path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items()), "utf-8")
        yield path


def record_releases(bundles: Iterable[Path], *, allow_downgrade: bool) -> None:
    """Record the releases of bundles that are in use from now on, where the machine's policy requires signatures."""
    policy = Policy.current()
    if not policy.require_signature:
        return
    for folder in bundles:
        with (folder / MANIFEST).open("rb") as file:
            manifest = json.loads(file.read(_LARGEST_MANIFEST))
        counter = counter_of(*(str(manifest[name]) for name in ("name", "precision", "provider")))
        policy.accept(counter, manifest.get("release"), allow_downgrade=allow_downgrade)
