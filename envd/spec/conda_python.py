"""Which Python a conda environment may have for the one that a model asks for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from envd.spec import conda_version
from envd.spec.match_spec import MatchSpec

_PATCH = re.compile(r"(?:==)?(\d+\.\d+)\.\d+(?:\.\*)?", re.ASCII)


def near(one: MatchSpec) -> MatchSpec:
    """Return *one* with any patch release, where it asks for one of Python's and nothing else."""
    found = _PATCH.fullmatch(one.version)
    is_plain = one == MatchSpec("python", one.version, channel=one.channel)
    return replace(one, version=f"{found[1]}.*") if found and is_plain else one


def is_asked_for(packages: Iterable[MatchSpec], version: str) -> bool:
    """Whether a Python *version* is what *packages* ask for, to its patch release."""
    asked = [one.version for one in packages if one.name == "python"]
    return all(conda_version.allows(one, version) for one in asked)
