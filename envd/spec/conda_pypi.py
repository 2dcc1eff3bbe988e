"""What the conda packages of a `conda.yaml` are to the virtualenv manager: PyPI's, or nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from envd.events import Note
from envd.model.documents import Text
from envd.model.texts import shown
from envd.spec import conda_forge, conda_yaml
from envd.spec.conda_names import pypi_name
from envd.spec.conda_yaml import CondaYaml
from envd.spec.match_spec import MatchSpec
from envd.spec.place import Place
from envd.spec.policy import Policy
from envd.spec.python import first_version

_BUILD_PACKAGES = ("pip", "setuptools", "wheel")


@dataclass(frozen=True, slots=True)
class Translated:
    """Conda packages as PyPI requirements: the tools of a `build`, and `packages`.

    `source` is the file with only those of its packages that became `packages`.
    """

    source: CondaYaml
    python: str | None
    build: tuple[str, ...]
    packages: tuple[str, ...]
    notes: tuple[Note, ...]


def translated(found: CondaYaml) -> Translated:
    """Return what *found* asks of PyPI.

    Raises:
        ModelInvalidError: a package is asked for as PyPI's cannot be.
    """
    python = None
    build, packages = [], []
    used: list[tuple[Place, MatchSpec]] = []
    notes = []
    for place, one in found.packages:
        name = pypi_name(one.name)
        if one.name == "python":
            python = first_version(one.version)
        elif name is None:
            notes.append(_dropped(one.name))
        elif one.name in _BUILD_PACKAGES:
            build.append(_requirement(place, name, one))
        else:
            packages.append(_requirement(place, name, one))
            used.append((place, one.of_any_build()))
            notes.append(_from_pypi(one.name, packages[-1]))
    source = replace(found, packages=tuple(used))
    return Translated(source, python, tuple(build), tuple(packages), tuple(notes))


def judged(
    found: Translated, rule: Literal["rewrite", "warn", "deny"], rules: Policy
) -> tuple[Note, ...]:
    """Judge the channels that the packages would come from, were it not for PyPI.

    A package of a private channel is another one than PyPI's of the same name.

    Raises:
        PolicyDeniedError: *rules* or *rule* (`conda.defaults`) do not allow one.
    """
    if not found.packages:
        return ()
    source = conda_forge.rewritten(found.source, rule)
    return (*source.notes, *conda_yaml.judged(source, rules))


def _requirement(place: Place, name: str, one: MatchSpec) -> Text:
    if "|" in one.version:
        why = f"`{shown(one.text)}` has alternatives (`|`), which PyPI cannot be asked for"
        raise place.invalid(why)
    terms = [_specifier(term) for term in one.version.split(",") if term]
    return Text.at(place.line, f"{name}{','.join(terms)}")


def _specifier(term: str) -> str:
    """Translate one comparison of a match spec to PEP 440."""
    if not term.endswith(".*") or term.startswith("!="):
        return term
    version = term.removesuffix(".*")
    # `=1.2` is any 1.2.x; who writes a third number or a suffix means just that.
    return f"=={version}.*" if re.fullmatch(r"\d+(\.\d+)?", version) else f"=={version}"


def _dropped(name: str) -> Note:
    message = f"the conda package `{shown(name)}` is no Python package; left out of the virtualenv"
    return Note("CONDA_PACKAGE_DROPPED", message, shown(name))


def _from_pypi(name: str, requirement: str) -> Note:
    message = f"the conda package `{shown(name)}` is installed from PyPI as `{shown(requirement)}`"
    return Note("CONDA_PACKAGE_TRANSLATED", message, shown(name))
