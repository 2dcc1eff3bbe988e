"""Reads `conda.yaml`: its Python, its pip section, and its conda packages."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from envd.errors import ModelInvalidError
from envd.events import Note
from envd.model import documents
from envd.model.documents import Document, Text, line_of
from envd.model.texts import shown
from envd.spec.conda_names import pypi_name
from envd.spec.place import Place
from envd.spec.policy import Policy
from envd.spec.python import first_version
from envd.spec.urls import without_token

_MATCH_SPEC = re.compile(r"(?:([\w./:-]+)::)?([A-Za-z0-9_.-]+)\s*([=<>!~][^;]*|\s[\d*].*)?")
_BUILD_PACKAGES = ("pip", "setuptools", "wheel")
# Whose packages are PyPI's under the same names, as far as they are Python packages.
_ORDINARY = re.compile(
    r"nodefaults|(?:(?:https?://)?(?:conda|repo)\.anaconda\.(?:com|org|cloud)/)?"
    r"(?:conda-forge|defaults|anaconda|main|r|free|msys2|pkgs/\w+)(?:/(?:noarch|linux-\w+))?/?",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class CondaYaml:
    """A `conda.yaml` as the virtualenv manager understands it.

    `build` and `packages` are conda packages as PyPI requirements, `pip` the lines of the
    pip section.
    """

    python: str | None
    build: tuple[str, ...]
    packages: tuple[str, ...]
    pip: tuple[str, ...]
    notes: tuple[Note, ...]


def read(model: Path, name: str, policy: Policy) -> CondaYaml:
    """Read the conda environment file *name* of *model*.

    Raises:
        ModelInvalidError: it is not one.
        PolicyDeniedError: its packages come from a channel *policy* does not allow.
    """
    document = documents.read(model, name)
    channels = _channels(model, name, document)
    dependencies = document.get("dependencies") or []
    if not isinstance(dependencies, list):
        message = f"`{model / name}`: `dependencies` is not a list"
        raise ModelInvalidError(message, model=model, path=name)
    lines: list[str] = []
    packages: list[_Package] = []
    for entry in dependencies:
        if isinstance(entry, str):
            packages.append(_package(Place(model, name, line_of(entry)), entry))
        else:
            lines += _pip_lines(model, name, entry)
    found = _translated(packages, policy)
    if found.packages:
        # A package of a private channel is another one than PyPI's of the same name.
        notes = [policy.channel(Place(model, name, line_of(one)), one) for one in channels]
        found = replace(found, notes=(*found.notes, *notes))
    return replace(found, pip=tuple(lines))


class _Package(NamedTuple):
    """A conda package as an entry names it: `channel` and `version` may be empty."""

    place: Place
    channel: str
    name: str
    version: str


def _translated(packages: Iterable[_Package], policy: Policy) -> CondaYaml:
    python, build, translated = None, [], []
    notes = []
    for one in packages:
        name = pypi_name(one.name)
        requirement = Text.at(one.place.line, f"{name}{_pep440(one.version)}")
        if one.name == "python":
            python = first_version(one.version)
        elif name is None:
            notes.append(_dropped(one.name))
        elif one.name in _BUILD_PACKAGES:
            build.append(requirement)
        else:
            translated.append(requirement)
            notes.append(_from_pypi(one.name, requirement))
            if one.channel and not _ORDINARY.fullmatch(one.channel):
                notes.append(policy.channel(one.place, one.channel))
    return CondaYaml(python, tuple(build), tuple(translated), (), tuple(notes))


def _pip_lines(model: Path, name: str, entry: Document) -> list[str]:
    lines = entry.get("pip") if isinstance(entry, dict) and set(entry) == {"pip"} else None
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        message = f"`{model / name}`: an entry of `dependencies` is neither a text nor `pip:`"
        raise ModelInvalidError(message, model=model, path=name)
    return [line for line in lines if isinstance(line, str)]


def _channels(model: Path, name: str, document: dict[str, Document]) -> list[str]:
    """Return the channels that are neither conda-forge nor Anaconda's own."""
    channels = document.get("channels") or []
    if not isinstance(channels, list) or not all(isinstance(one, str) for one in channels):
        message = f"`{model / name}`: `channels` is not a list of texts"
        raise ModelInvalidError(message, model=model, path=name)
    return [Text.at(line_of(one), without_token(one)) for one in channels
            if isinstance(one, str) and not _ORDINARY.fullmatch(one)]  # fmt: skip


def _package(place: Place, text: str) -> _Package:
    found = _MATCH_SPEC.fullmatch(text.strip())
    if found is None:
        why = f"`{shown(text)}` is not a conda package"
        raise place.invalid(why)
    return _Package(
        place, without_token(found[1] or ""), found[2].lower(), (found[3] or "").strip()
    )


def _pep440(version: str) -> str:
    """Translate a conda version (`=1.2`, `=1.2=py37_0`, `1.2 py37_0`, `>=1,<2`) to PEP 440."""
    text = re.sub(r"^([\d*]\S*)\s+(\w\S*)$", r"\1=\2", version.strip())
    text = re.sub(r"\s+", "", text)
    if not text or text == "*":
        return ""
    if re.match(r"[<>!~]|==", text):
        exact = re.fullmatch(r"(==[^=]+)=.+", text)
        return exact[1] if exact else text
    bare = text.lstrip("=").split("=")
    if bare[0].endswith("*"):
        prefix = bare[0].rstrip("*").rstrip(".")
        return f"=={prefix}.*" if prefix else ""
    # `=1.2` means any 1.2.x; a third number, a build string or a suffix means just that.
    is_open = text.startswith("=") and len(bare) == 1 and re.fullmatch(r"\d+(\.\d+)?", bare[0])
    return f"=={bare[0]}.*" if is_open else f"=={bare[0]}"


def _dropped(name: str) -> Note:
    message = f"the conda package `{shown(name)}` is no Python package; left out of the virtualenv"
    return Note("CONDA_PACKAGE_DROPPED", message, shown(name))


def _from_pypi(name: str, requirement: str) -> Note:
    message = f"the conda package `{shown(name)}` is installed from PyPI as `{shown(requirement)}`"
    return Note("CONDA_PACKAGE_TRANSLATED", message, shown(name))
