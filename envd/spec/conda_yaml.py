"""Reads `conda.yaml`: its Python, its pip section, and its conda packages."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from envd.errors import ModelInvalidError
from envd.events import Note
from envd.model import documents
from envd.model.documents import Document
from envd.spec.conda_names import pypi_name
from envd.spec.python import first_version

_MATCH_SPEC = re.compile(r"(?:[\w./:-]+::)?([A-Za-z0-9_.-]+)\s*([=<>!~].*|\s[\d*].*)?")
_BUILD_PACKAGES = ("pip", "setuptools", "wheel")


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


def read(model: Path, name: str) -> CondaYaml:
    """Read the conda environment file *name* of *model*.

    Raises:
        ModelInvalidError: it is not one.
    """
    document = documents.read(model, name)
    dependencies = document.get("dependencies") or []
    if not isinstance(dependencies, list):
        message = f"`{model / name}`: `dependencies` is not a list"
        raise ModelInvalidError(message, model=model, path=name)
    python, build, packages, pip, notes = None, [], [], [], []
    for entry in dependencies:
        if not isinstance(entry, str):
            pip += _pip_lines(model, name, entry)
            continue
        conda_name, version = _match_spec(model, name, entry)
        translated = pypi_name(conda_name)
        if conda_name == "python":
            python = first_version(version)
        elif translated is None:
            notes.append(_dropped(conda_name))
        elif conda_name in _BUILD_PACKAGES:
            build.append(translated + _pep440(version))
        else:
            packages.append(translated + _pep440(version))
            notes.append(_translated(conda_name, packages[-1]))
    return CondaYaml(python, tuple(build), tuple(packages), tuple(pip), tuple(notes))


def _pip_lines(model: Path, name: str, entry: Document) -> list[str]:
    lines = entry.get("pip") if isinstance(entry, dict) and set(entry) == {"pip"} else None
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        message = f"`{model / name}`: an entry of `dependencies` is neither a text nor `pip:`"
        raise ModelInvalidError(message, model=model, path=name)
    return [str(line) for line in lines]


def _match_spec(model: Path, name: str, text: str) -> tuple[str, str]:
    found = _MATCH_SPEC.fullmatch(text.strip())
    if found is None:
        message = f"`{model / name}`: `{text}` is not a conda package"
        raise ModelInvalidError(message, model=model, path=name)
    return found[1].lower(), (found[2] or "").strip()


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
    # `=1.2` means any 1.2.x; a build string after it, or a suffix, means just that version.
    is_exact = len(bare) > 1 or not text.startswith("=") or not re.fullmatch(r"[\d.]+", bare[0])
    return f"=={bare[0]}" if is_exact else f"=={bare[0]}.*"


def _dropped(name: str) -> Note:
    message = f"the conda package `{name}` is no Python package; left out of the virtualenv"
    return Note("CONDA_PACKAGE_DROPPED", message, name)


def _translated(name: str, requirement: str) -> Note:
    message = f"the conda package `{name}` is installed from PyPI as `{requirement}`"
    return Note("CONDA_PACKAGE_TRANSLATED", message, name)
