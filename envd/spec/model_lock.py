"""Reads a lock that lies in a model, which then says all there is to install.

`pylock.toml` (PEP 751) goes before the `uv.lock` of MLflow 3. It is never given to an
installer; what it pins is written afresh.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from packaging.markers import Marker
from packaging.specifiers import SpecifierSet

from envd.events import Note
from envd.model import files
from envd.model.texts import shown
from envd.spec import conda_lock, markers, pylock, uv_lock
from envd.spec.dependencies import Dependencies
from envd.spec.locked import Contents
from envd.spec.place import Place
from envd.spec.policy import Policy
from envd.spec.python import Python
from envd.spec.requirement import Requirement

# A character of a marker takes up to 3 us to read, one of a specifier 4; each text is read
# once, as `_evaluated` and `_admits` keep as many as there may be.
_MAX_TEXTS = 4_096
_MAX_MARKER, _MAX_MARKERS = 4_000, 128 << 10
_MAX_SPECIFIER, _MAX_SPECIFIERS = 500, 16 << 10

_Reader = Callable[[Path, str, Policy], Contents]
# In this order; with whether the requirements of the model have to agree with it. What
# MLflow writes beside a uv.lock is what the model imports, and the lock is the project's.
_FORMATS: tuple[tuple[str, bool, _Reader], ...] = (
    ("pylock.toml", True, pylock.read),
    ("uv.lock", False, uv_lock.read),
)


@dataclass(frozen=True, slots=True)
class Lock:
    """A lock that lies in a model, for any number of Pythons."""

    file: str
    must_agree: bool
    contents: Contents

    def select(self, python: Python) -> tuple[Requirement, ...]:
        """Return every package of the lock that belongs on *python*, pinned, with hashes.

        Raises:
            ModelInvalidError: the lock is not for this Python, or is ambiguous on it.
        """
        contents = self.contents
        self._must_be_for(python)
        selected: dict[str, Requirement] = {}
        for package in contents.reached(
            lambda place, marker: _applies(place, marker, python, contents.groups)
        ):
            _must_admit(package.place, f"`{package.name}`", package.requires_python, python)
            if package.name in selected:
                why = f"it holds two packages `{package.name}` for Python {python.version}"
                raise package.place.invalid(why, package=package.name)
            (selected[package.name],) = contents.found[package].requirements
        return tuple(sorted(selected.values()))

    def _must_be_for(self, python: Python) -> None:
        place, contents = self.contents.place, self.contents
        _must_admit(place, "the lock", contents.requires_python, python)
        environments = contents.environments
        if environments and not any(
            _applies(place, one, python, contents.groups) for one in environments
        ):
            why = f"the lock is for other environments than Python {python.version} on Linux"
            raise place.invalid(why, python=python.version)


def read(model: Path, policy: Policy) -> Lock | None:
    """Return the lock that lies in *model*, None where there is none.

    Raises:
        ModelInvalidError: it cannot be used; the message has the file and the line.
        PolicyDeniedError: *policy* does not allow where a package of it comes from.
    """
    for name, must_agree, reader in _FORMATS:
        if files.exists(model, name):
            contents = reader(model, name, policy)
            _must_be_short(contents)
            return Lock(name, must_agree, contents)
    return None


def passed_over(model: Path, manager: str) -> tuple[Note, ...]:
    """Return notes on the locks in *model* that are not for the *manager* of its environment."""
    is_conda = manager == "conda"
    others = [name for name, *_ in _FORMATS] if is_conda else [conda_lock.FILE]
    message = (
        "`{0}` of the model is passed over: it is a lock for {1}, and the environment is made by "
        "{2} (`--env-manager`)"
    )
    meant = ("virtualenv", "conda") if is_conda else ("conda", "virtualenv")
    return tuple(
        Note("LOCK_PASSED_OVER", message.format(one, *meant), one)
        for one in others
        if files.exists(model, one)
    )


def _must_be_short(contents: Contents) -> None:
    """Refuse a lock whose markers or `requires-python` would take long to read."""
    markers = dict.fromkeys(contents.environments, contents.place)

    def noted(place: Place, marker: str) -> bool:
        markers.setdefault(marker, place)
        return True

    packages = contents.reached(noted)
    specifiers = {one.requires_python: one.place for one in packages}
    specifiers |= {contents.requires_python: contents.place}
    for what, places, longest, most in (
        ("markers", markers, _MAX_MARKER, _MAX_MARKERS),
        ("`requires-python`", specifiers, _MAX_SPECIFIER, _MAX_SPECIFIERS),
    ):
        for text, place in places.items():
            if len(text) > longest:
                why = f"`{shown(text)}` is over {longest} characters"
                raise place.invalid(why)
        if len(places) > _MAX_TEXTS or sum(map(len, places)) > most:
            why = f"its {what} are over {_MAX_TEXTS} different ones or {most} characters"
            raise contents.place.invalid(why)


def honoured(lock: Lock, found: Dependencies) -> Dependencies:
    """Return *found* with *lock* in force: its indexes, its notes, and a note that says so."""
    parts = lock.contents.found.values()
    message = f"`{lock.file}` of the model says which packages are installed"
    notes = dict.fromkeys(note for part in parts for note in part.notes)
    return replace(
        found,
        lock=lock,
        asked=replace(
            found.asked,
            options=sum((part.options for part in parts), found.asked.options),
        ),
        notes=(*found.notes, *notes, Note("LOCK_HONOURED", message, lock.file)),
    )


def _must_admit(place: Place, what: str, requires_python: str, python: Python) -> None:
    try:
        is_admitted = _admits(requires_python, python.version)
    except ValueError as error:
        why = f"`requires-python` of {what} is no specifier: `{shown(requires_python)}`"
        raise place.invalid(why) from error
    if not is_admitted:
        why = f"{what} is for Python {requires_python}, and this is {python.version}"
        raise place.invalid(why, python=python.version)


@lru_cache(_MAX_TEXTS)
def _admits(requires_python: str, version: str) -> bool:
    return SpecifierSet(requires_python).contains(version, prereleases=True)


def _applies(place: Place, marker: str, python: Python, groups: frozenset[str]) -> bool:
    try:
        return _evaluated(marker, python, groups)
    except (ValueError, RecursionError) as error:
        why = f"`{shown(marker)}` is not a marker: {shown(str(error).partition(chr(10))[0])}"
        raise place.invalid(why, marker=shown(marker)) from error


@lru_cache(_MAX_TEXTS)
def _evaluated(marker: str, python: Python, groups: frozenset[str]) -> bool:
    if not marker:
        return True
    chosen = {"extras": frozenset[str](), "dependency_groups": groups}
    return Marker(marker).evaluate({**markers.environment(python), **chosen}, "lock_file")
