"""What is installed in an environment, and whether it fits together: the rules of `pip check`."""

from __future__ import annotations

import glob
import platform
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path

from packaging import requirements, utils
from packaging.markers import Marker

from envd.lock import wheel_records
from envd.spec import markers
from envd.spec.python import Python

_MAX_BYTES = 1 << 20
_METADATA = ("*.dist-info/METADATA", "*.egg-info/PKG-INFO", "*.egg-info")


@dataclass(frozen=True, slots=True)
class Distribution:
    """A distribution as it is installed, and what it needs."""

    name: str
    version: str
    requires: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Conflict:
    """What a distribution needs and does not get; `found` is empty where nothing is there."""

    distribution: Distribution
    requirement: str
    found: str

    @property
    def message(self) -> str:
        """The same as a sentence."""
        one = self.distribution
        have = f"{self.found} is installed" if self.found else "it is not installed"
        return f"{one.name} {one.version} needs `{self.requirement}`, and {have}"


def read(prefix: Path) -> dict[str, Distribution]:
    """Return the distributions in the environment at *prefix*, by their normalized names.

    Raises:
        OSError: it cannot be read.
    """
    found: dict[str, Distribution] = {}
    for site in sorted(prefix.glob("lib/python3.*/site-packages")):
        for pattern in _METADATA:
            for path in sorted(site.glob(pattern)):
                if path.is_file() and (one := _distribution(path)):
                    found.setdefault(utils.canonicalize_name(one.name), one)
    if not found:
        next(prefix.iterdir(), None)
    return found


def _distribution(path: Path) -> Distribution | None:
    with path.open("rb") as file:
        head = HeaderParser().parsestr(file.read(_MAX_BYTES).decode(errors="replace"))
    name, version = head.get("Name"), head.get("Version")
    if not name or not version:
        return None
    return Distribution(name, version, tuple(head.get_all("Requires-Dist") or ()))


def bringing(prefix: Path, module: str) -> tuple[str, ...]:
    """Return the distributions in the environment at *prefix* that bring the top-level *module*.

    By their record of what they installed: whatever they are called.

    Raises:
        OSError: it cannot be read.
    """
    found: list[str] = []
    for site in prefix.glob("lib/python3.*/site-packages"):
        # Reading what everything installed takes a hundred times as long as looking for it.
        if any(site.glob(f"{glob.escape(module)}*")):
            infos = [one for one in sorted(site.glob("*.dist-info")) if _brings(one, module)]
            known = (_distribution(one / "METADATA") for one in infos)
            found += [one.name for one in known if one]
    return tuple(found)


def _brings(info: Path, module: str) -> bool:
    record = info / "RECORD"
    if not record.exists():
        return False
    return any(
        one.startswith(f"{module}/")
        or one == f"{module}.py"
        or (one.startswith(f"{module}.") and one.endswith(".so"))
        for one in wheel_records.files(record)
    )


def conflicts(
    installed: dict[str, Distribution], python: str, asked: Iterable[str] = ()
) -> Iterator[Conflict]:
    """Yield what does not fit among *installed* on *python* (`3.11.7`).

    What the extras need that are *asked* for, by requirements of the model or by one another,
    counts too: `pip check` leaves it out.
    """
    values = _values(python)
    extras = _extras(installed, asked, values)
    for name, one in installed.items():
        for text in one.requires:
            needed = _needed(text, extras.get(name, frozenset()), values)
            if needed is None:
                continue
            found = installed.get(utils.canonicalize_name(needed.name))
            version = found.version if found else ""
            if not found or not needed.specifier.contains(version, prereleases=True):
                yield Conflict(one, text, f"{needed.name} {version}" if found else "")


def _values(python: str) -> dict[str, str]:
    machine = platform.machine()
    return markers.environment(Python("cpython", python, "", f"{sys.platform}-{machine}", ""))


def _extras(
    installed: dict[str, Distribution], asked: Iterable[str], values: dict[str, str]
) -> dict[str, frozenset[str]]:
    """Return the extras of each distribution that somebody asks for."""
    found: dict[str, frozenset[str]] = {}
    ahead = list(asked) + [text for one in installed.values() for text in one.requires]
    while ahead:
        needed = _needed(ahead.pop(), frozenset(), values)
        if needed is None or not needed.extras:
            continue
        name = utils.canonicalize_name(needed.name)
        new = frozenset(needed.extras) - found.get(name, frozenset())
        if new and name in installed:
            found[name] = found.get(name, frozenset()) | new
            ahead += installed[name].requires
    return found


def _needed(
    text: str, extras: frozenset[str], values: dict[str, str]
) -> requirements.Requirement | None:
    """Return the requirement *text* if it holds with one of the *extras*, or without any."""
    try:
        found = requirements.Requirement(text)
        holds = any(_holds(found.marker, values, one) for one in ("", *extras))
    except (ValueError, RecursionError):
        # Nobody could ever install by it.
        return None
    return found if holds else None


def _holds(marker: Marker | None, values: dict[str, str], extra: str) -> bool:
    return marker is None or marker.evaluate({**values, "extra": extra})
