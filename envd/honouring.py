"""Takes the `conda-lock.yml` that lies in a model for what the model asks of conda."""

from __future__ import annotations

from dataclasses import replace

from envd.config import Settings
from envd.errors import PolicyDeniedError
from envd.events import Note
from envd.lock import CondaPackage, conda_lock_file
from envd.lock.conda_lock_file import CondaLock
from envd.model import Model, files
from envd.spec import Dependencies, Requirement, channels, policy
from envd.spec.channels import CONDA_FORGE
from envd.spec.match_spec import MatchSpec
from envd.spec.place import Place
from envd.spec.python import conda_subdir, python_of_conda

_FILE = "conda-lock.yml"


def honoured(
    model: Model, found: Dependencies, settings: Settings
) -> tuple[Dependencies, tuple[CondaPackage, ...]]:
    """Return *found* with what a lock in *model* says in its place, and the lock's packages.

    A lock of Anaconda's own builds cannot be rewritten: it is passed over where
    `conda.defaults` says that they are.

    Raises:
        ModelInvalidError: it is no lock, or has nothing for this platform.
        PolicyDeniedError: its packages come from where the settings do not allow.
    """
    if not files.exists(model.path, _FILE):
        return found, ()
    lock = conda_lock_file.read(model.path, _FILE, conda_subdir(python_of_conda("")))
    place, rules = Place(model.path, _FILE, 1), policy.of(settings.security)
    anacondas = [one for one in lock.channels if channels.is_anaconda(channels.parse(one))]
    if anacondas and settings.conda.defaults != "warn":
        return _passed_over(found, place, anacondas[0], settings), ()
    others = [one for one in lock.channels if one != CONDA_FORGE.name]
    notes = (*lock.notes, *(rules.channel(place, one) for one in others), *_unmet(found, lock))
    return _closed(found, lock, notes), lock.packages


def _passed_over(
    found: Dependencies, place: Place, channel: str, settings: Settings
) -> Dependencies:
    if settings.conda.defaults == "deny":
        message = (
            f"{place.where()}: its packages come from Anaconda's own channel `{channel}`, which "
            "`conda.defaults` (ENVD_CONDA__DEFAULTS) does not allow"
        )
        raise PolicyDeniedError(message, path=place.file, setting="conda.defaults")
    message = (
        f"`{_FILE}` of the model has packages of `{channel}`, and is passed over: the packages are "
        "locked anew, of conda-forge"
    )
    return replace(found, notes=(*found.notes, Note("LOCK_PASSED_OVER", message, _FILE)))


def _unmet(found: Dependencies, lock: CondaLock) -> list[Note]:
    there = {one.name for one in lock.packages}
    missing = sorted({one.name for one in found.packages} - there)
    if not missing:
        return []
    message = f"`{_FILE}` of the model does not hold what the model asks for: {', '.join(missing)}"
    return [Note("LOCK_DIFFERS", message, _FILE)]


def _closed(found: Dependencies, lock: CondaLock, notes: tuple[Note, ...]) -> Dependencies:
    packages = tuple(
        MatchSpec(one.name, f"=={one.version}", build=one.build, sha256=one.sha256)
        for one in lock.packages
    )
    pip = tuple(
        Requirement(one.name, f"{one.name}=={one.version}", (f"sha256:{one.sha256}",))
        for one in lock.pip
    )
    return replace(
        found,
        asked=replace(found.asked, requirements=pip, constraints=()),
        notes=(*found.notes, *notes),
        bounds=(),
        closed=True,
        channels=lock.channels,
        packages=packages,
    )
