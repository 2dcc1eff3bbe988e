"""Chooses one artifact per distribution, as pip does: the best wheel, else the source."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from packaging import tags, utils

from envd.errors import SolveFailedError
from envd.spec import Python
from envd.spec.python import is_here
from envd.spec.urls import file_name

# What uv means by the platforms it is asked for.
_MACOS, _GLIBC = (13, 0), 28


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file of a distribution: a wheel, or a source archive."""

    name: str
    version: str
    filename: str
    url: str
    sha256: str

    @property
    def is_wheel(self) -> bool:
        """Whether it can be installed as it is."""
        return self.filename.endswith(".whl")


def choose(
    package: Mapping[str, Any], python: Python, allowed: Collection[str], *, from_source: bool
) -> Artifact:
    """Choose the file of *package*, an entry of a `pylock.toml` (PEP 751), for *python*.

    Of two wheels that fit as well the one of the later build is taken.

    *allowed* are the hashes the model allows, none for any; with *from_source* no wheel
    is taken.

    Raises:
        SolveFailedError: no file fits.
    """
    ranks = _tag_ranks(python)
    ranked = []
    for wheel in () if from_source else package.get("wheels", ()):
        rank = _rank(_filename(wheel), ranks)
        if rank is not None:
            ranked.append((rank, _filename(wheel), wheel))
    if archive := package.get("sdist") or package.get("archive"):
        ranked.append(((-len(ranks), ()), _filename(archive), archive))
    fitting = [
        found for found in ranked
        if not allowed or f"sha256:{found[2]['hashes']['sha256']}" in allowed
    ]  # fmt: skip
    name = package["name"]
    if not fitting:
        why = "none of its files has a hash the model allows" if ranked else "no file of it fits"
        message = f"`{name}=={package.get('version')}` cannot be installed on this Python: {why}"
        raise SolveFailedError(message, package=name)
    by_name = sorted(fitting, key=lambda found: found[1])
    _, filename, file = max(by_name, key=lambda found: found[0])
    place = file.get("url") or file.get("path") or ""
    return Artifact(name, package["version"], filename, place, file["hashes"]["sha256"])


def _filename(artifact: Mapping[str, Any]) -> str:
    return file_name(artifact.get("name") or artifact.get("url") or artifact.get("path") or "")


def _rank(filename: str, ranks: Mapping[tags.Tag, int]) -> tuple[int, utils.BuildTag] | None:
    """Return how well a wheel fits, more being better: its best tag, then its build."""
    try:
        _, _, build, wheel_tags = utils.parse_wheel_filename(filename)
    except utils.InvalidWheelFilename:
        return None
    found = [ranks[tag] for tag in wheel_tags if tag in ranks]
    return (-min(found), build) if found else None


def _platforms_of(python: Python) -> Iterator[str]:
    """Yield the platforms of wheels that a *python* elsewhere takes, as envd.lock.compile asks."""
    system, _, machine = python.platform.partition("-")
    if system == "darwin":
        yield from tags.mac_platforms(_MACOS, machine)
    elif system == "linux":
        yield from (f"manylinux_2_{minor}_{machine}" for minor in range(_GLIBC, 16, -1))
        yield f"manylinux2014_{machine}"
    else:
        yield f"win_{machine.lower()}"


@lru_cache(16)
def _tag_ranks(python: Python) -> dict[tags.Tag, int]:
    """Return the tags *python* accepts with their rank, the best first (PEP 425)."""
    # The ABI of CPython 3.7 is called cpython-37m in its files and cp37m in wheels.
    abi = "cp" + python.abi.removeprefix("cpython-").split("-")[0]
    platforms = list(tags.platform_tags() if is_here(python) else _platforms_of(python))
    supported = [
        *tags.cpython_tags(python.release[:2], [abi], platforms),
        *tags.compatible_tags(python.release[:2], "cp{}{}".format(*python.release), platforms),
    ]
    return {tag: rank for rank, tag in reversed(list(enumerate(supported)))}
