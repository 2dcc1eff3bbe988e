"""Takes the `conda-lock.yml` that lies in a model for what the model asks of conda.

It then says all there is to install, the Python and the pip section included; it is never
given to an installer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from envd.config import Settings
from envd.errors import PolicyDeniedError
from envd.events import Note
from envd.model import Model, files
from envd.spec import channels, conda_lock, conda_python, markers, repairs
from envd.spec.channels import CONDA_FORGE
from envd.spec.conda_lock import FILE, CondaLock
from envd.spec.conda_names import pypi_name, pypi_version
from envd.spec.conda_package import CondaPackage
from envd.spec.dependencies import Dependencies, not_held
from envd.spec.match_spec import MatchSpec
from envd.spec.place import Place
from envd.spec.policy import Policy
from envd.spec.python import conda_subdir, python_of_conda
from envd.spec.requirement import Requirement


def honoured(
    model: Model, found: Dependencies, repaired: Dependencies, rules: Policy, settings: Settings
) -> Dependencies:
    """Return *found* with the lock of *model* in its place, where there is one, else *repaired*.

    The lock has to hold what is asked for once it is *repaired*. One of Anaconda's own builds
    cannot be rewritten: it is passed over where `conda.defaults` says that they are.

    Raises:
        ModelInvalidError: it is no lock, has nothing for this platform, or is out of date.
        PolicyDeniedError: its packages come from where the settings do not allow.
    """
    if not files.exists(model.path, FILE):
        return repaired
    lock = conda_lock.read(model.path, FILE, conda_subdir(python_of_conda("")))
    place = Place(model.path, FILE, 1)
    named = [channels.parse(one) for one in lock.channels]
    anacondas = [one for one in named if channels.is_anaconda(one)]
    if anacondas and settings.conda.defaults != "warn":
        return _passed_over(repaired, place, anacondas[0].name, settings)
    others = [one for one in named if one != CONDA_FORGE]
    wanted, note = _with_near_python(repaired, lock, settings)
    if unmet := [*_unmet_packages(wanted, lock), *_unmet_requirements(wanted, lock)]:
        raise not_held(FILE, unmet, new=FILE, options=" --env-manager conda")
    message = f"`{FILE}` of the model says which packages are installed"
    notes = (
        *found.notes, *lock.notes, *(rules.channel(place, one) for one in others), *note,
        Note("LOCK_HONOURED", message, FILE),
    )  # fmt: skip
    return _closed(replace(found, notes=notes), lock, settings)


def requirements(lock: CondaLock) -> tuple[Requirement, ...]:
    """Return the pip section of *lock*, pinned, with hashes."""
    return tuple(
        Requirement(one.name, f"{one.name}=={one.version}", (f"sha256:{one.sha256}",))
        for one in lock.pip
    )


def _passed_over(
    repaired: Dependencies, place: Place, channel: str, settings: Settings
) -> Dependencies:
    if settings.conda.defaults == "deny":
        message = (
            f"{place.where()}: its packages come from Anaconda's own channel `{channel}`, which "
            "`conda.defaults` (ENVD_CONDA__DEFAULTS) does not allow"
        )
        raise PolicyDeniedError(message, path=place.file, setting="conda.defaults")
    message = (
        f"`{FILE}` of the model has packages of `{channel}`, and is passed over: the packages are "
        "locked anew, of conda-forge"
    )
    return replace(repaired, notes=(*repaired.notes, Note("LOCK_PASSED_OVER", message, FILE)))


def _with_near_python(
    wanted: Dependencies, lock: CondaLock, settings: Settings
) -> tuple[Dependencies, tuple[Note, ...]]:
    """Return *wanted* with the patch release of Python that *lock* has, and a note on that."""
    python = _python(lock)
    if settings.python.match == "exact" or conda_python.is_asked_for(wanted.packages, python):
        return wanted, ()
    near = tuple(map(conda_python.near, wanted.packages))
    message = f"the model asks for Python {wanted.python}; `{FILE}` of the model has {python}"
    note = Note("PYTHON_PATCH_DIFFERS", message, python)
    return replace(wanted, packages=near), (note,)


def _unmet_packages(wanted: Dependencies, lock: CondaLock) -> Iterator[str]:
    there = {one.name: one for one in lock.packages}
    for asked in wanted.packages:
        found = there.get(asked.name)
        if found is None:
            yield asked.text
        elif not found.satisfies(asked):
            yield f"{asked.text} (it has {found.version} {found.build})"


def _unmet_requirements(wanted: Dependencies, lock: CondaLock) -> list[str]:
    python = python_of_conda(_python(lock))
    there = (*map(_of_pypi, lock.packages), *requirements(lock))
    return [one.text for one in markers.unmet(wanted.asked.requirements, there, python)]


def _of_pypi(package: CondaPackage) -> Requirement:
    name = pypi_name(package.name) or package.name
    return Requirement(name, f"{name}=={pypi_version(package.version)}")


def _python(lock: CondaLock) -> str:
    return next((one.version for one in lock.packages if one.name == "python"), "")


def _closed(found: Dependencies, lock: CondaLock, settings: Settings) -> Dependencies:
    pip = requirements(lock)
    packages = tuple(
        MatchSpec(one.name, f"=={one.version}", build=one.build, sha256=one.sha256)
        for one in lock.packages
    )
    return replace(
        found,
        asked=replace(found.asked, requirements=pip, constraints=()),
        build_constraints=repairs.build_limits(pip) if settings.resolve.repair else (),
        closed=True,
        channels=lock.channels,
        packages=packages,
        locked=lock.packages,
    )
