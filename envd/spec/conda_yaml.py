"""Reads `conda.yaml`: what it says, whichever manager makes an environment of it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from envd.errors import EnvdError, ModelInvalidError
from envd.events import Note
from envd.model import documents, files
from envd.model.documents import Document, line_of
from envd.model.texts import shown
from envd.secrets import without_token
from envd.spec import channels, match_spec
from envd.spec.channels import CONDA_FORGE, Channel
from envd.spec.match_spec import MatchSpec
from envd.spec.place import Place
from envd.spec.policy import Policy

# Each costs ten milliseconds (`envd.spec.spec.told_apart`).
_MOST_VARIABLES = 100
_VARIABLE = re.compile(r"[A-Za-z_]\w*", re.ASCII)


@dataclass(frozen=True, slots=True)
class CondaYaml:
    """A `conda.yaml`, everything in its order.

    `place` is where the file begins. `channels` is empty where it names none. `pip` has the
    lines of all its pip sections, `variables` what is set where the environment is used, which
    may be secret. A channel that is none is a `fault` only where packages come from it.
    """

    place: Place
    channels: tuple[tuple[Place, Channel], ...] = ()
    packages: tuple[tuple[Place, MatchSpec], ...] = ()
    pip: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    notes: tuple[Note, ...] = ()
    fault: EnvdError | None = None

    def places(self) -> dict[Channel, Place]:
        """Return each channel that the list or a package names, and where it does so first."""
        by_packages = [(place, one.channel) for place, one in self.packages if one.channel]
        found: dict[Channel, Place] = {}
        for place, channel in (*self.channels, *by_packages):
            found.setdefault(channel, place)
        return found


def read(model: Path, name: str) -> CondaYaml:
    """Read the conda environment file *name* of *model*.

    As conda does, it passes over `name`, `prefix` and keys that nobody knows.

    Raises:
        ModelInvalidError: it is not one.
    """
    document = documents.read(model, name)
    _refuse_selectors(model, name)
    packages: list[tuple[Place, MatchSpec]] = []
    pip: list[str] = []
    for entry in _list(model, name, document, "dependencies"):
        if isinstance(entry, str):
            place = Place(model, name, line_of(entry))
            packages.append((place, _package(place, entry)))
        else:
            pip += _pip_lines(model, name, entry)
    named, fault = _channels(model, name, document)
    return CondaYaml(
        Place(model, name, 1),
        channels=named,
        packages=tuple(packages),
        pip=tuple(pip),
        variables=_variables(model, name, document),
        fault=fault,
    )


def judged(found: CondaYaml, rules: Policy) -> tuple[Note, ...]:
    """Judge every channel that packages of *found* may come from, conda-forge aside.

    Raises:
        ModelInvalidError: one is none.
        PolicyDeniedError: *rules* do not allow one.
    """
    if found.fault:
        raise found.fault
    places = found.places().items()
    return tuple(rules.channel(place, one) for one, place in places if one != CONDA_FORGE)


def _refuse_selectors(model: Path, name: str) -> None:
    # They are comments to YAML and to conda, which would install what is not meant for Linux.
    for number, line in enumerate(files.read_text(model, name).splitlines(), 1):
        if line.lstrip().startswith("-") and match_spec.has_selector(line):
            why = "selectors (`# [linux]`) are not read; write what holds on Linux, without them"
            raise Place(model, name, number).invalid(why)


def _list(model: Path, name: str, document: dict[str, Document], key: str) -> list[Document]:
    value = document.get(key) or []
    if not isinstance(value, list):
        raise _invalid(model, name, f"`{key}` is not a list")
    return value


def _channels(
    model: Path, name: str, document: dict[str, Document]
) -> tuple[tuple[tuple[Place, Channel], ...], EnvdError | None]:
    """Return the channels, and the fault of the first that is none."""
    found, faults = [], []
    for entry in _list(model, name, document, "channels"):
        if not isinstance(entry, str):
            raise _invalid(model, name, "`channels` is not a list of texts")
        place = Place(model, name, line_of(entry))
        try:
            found.append((place, channels.parse(entry)))
        except ValueError as error:
            why = f"`{shown(without_token(entry))}` is not a conda channel: {error}"
            faults.append(place.invalid(why))
    return tuple(found), faults[0] if faults else None


def _package(place: Place, text: str) -> MatchSpec:
    try:
        return match_spec.parse(text)
    except ValueError as error:
        why = f"`{shown(without_token(text))}` is not a conda package: {error}"
        raise place.invalid(why) from error


def _pip_lines(model: Path, name: str, entry: Document) -> list[str]:
    keys = list(entry) if isinstance(entry, dict) else []
    if any(key == "if" or key.startswith("sel(") for key in keys):
        why = f"the selector `{shown(keys[0])}` is not read; write what holds on Linux, without it"
        raise Place(model, name, line_of(keys[0])).invalid(why)
    lines = (entry["pip"] or []) if isinstance(entry, dict) and keys == ["pip"] else None
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise _invalid(
            model, name, "an entry of `dependencies` is neither a text nor `pip:` with texts"
        )
    return [line for line in lines if isinstance(line, str)]


def _variables(
    model: Path, name: str, document: dict[str, Document]
) -> tuple[tuple[str, str], ...]:
    variables = document.get("variables") or {}
    if not isinstance(variables, dict):
        raise _invalid(model, name, "`variables` is not a mapping")
    if len(variables) > _MOST_VARIABLES:
        raise _invalid(model, name, f"`variables` has over {_MOST_VARIABLES} of them")
    found = []
    for key, value in variables.items():
        if not _VARIABLE.fullmatch(key) or not isinstance(value, str) or "\0" in value:
            name_of = shown(key.partition("=")[0])
            why = f"`{name_of}` of `variables` is not the name of a variable, or has no text"
            raise Place(model, name, line_of(key)).invalid(why)
        found.append((key, value))
    return tuple(found)


def _invalid(model: Path, name: str, why: str) -> ModelInvalidError:
    return ModelInvalidError(f"`{model / name}`: {why}", model=model, path=name)
