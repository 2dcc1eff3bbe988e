"""Runs a model by the Python it was made with, and reads what was seen."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from envd import child
from envd.errors import (
    DeadlineExceededError,
    EnvdError,
    PythonUnavailableError,
    RequestInvalidError,
    from_document,
)
from envd.model import Model, example
from envd.model.mlmodel import check_path
from envd.sandbox.tiers import PROGRAM

_TAIL_LINES = 20
JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Given:
    """What a model is asked: the text, and of which content type it is."""

    content: bytes
    content_type: str = JSON


@dataclass(frozen=True)
class Distribution:
    """A distribution that is installed where the model was made.

    `key` is its normalized name; `origin` its direct_url.json, `editable` the folder that it
    is worked on in.
    """

    name: str
    version: str
    requires: tuple[Requirement, ...]
    extras: tuple[str, ...]
    installer: str
    origin: Mapping[str, Any]
    editable: str

    @cached_property
    def key(self) -> str:
        """Its normalized name."""
        return canonicalize_name(self.name)


@dataclass(frozen=True, slots=True)
class Module:
    """A module that was loaded: its real file, and the key of whose that is, empty for nobody."""

    name: str
    file: Path
    owner: str


@dataclass(frozen=True, slots=True)
class Observed:
    """What one run has shown. `answer` is the same of two runs that answered the same."""

    answer: str
    modules: Mapping[str, Module]
    edges: Sequence[tuple[str, str]]
    distributions: Mapping[str, Distribution]
    markers: Mapping[str, str]
    failure: EnvdError | None = field(default=None)

    def loaded(self) -> set[str]:
        """Return the keys of the distributions of which a module was loaded."""
        return {one.owner for one in self.modules.values() if one.owner}


@dataclass(frozen=True)
class Observer:
    """Runs one model, asked one thing, by one Python."""

    model: Model
    given: Given | None
    python: Path
    path: tuple[Path, ...] = ()
    timeout_s: float = 600.0

    def observe(self, hidden: Mapping[str, Sequence[str]] | None = None) -> Observed:
        """Run the model once; `hidden` are modules and distributions that are not to be found.

        Raises:
            PythonUnavailableError: there is no such Python, or it cannot run the program.
            DeadlineExceededError: it took too long.
        """
        with tempfile.TemporaryDirectory(prefix="envd-infer-") as folder:
            asked = Path(folder) / "question.json"
            asked.write_text(json.dumps(self._question(Path(folder), hidden or {})))
            tail = self._run(asked)
            try:
                answer = json.loads(asked.read_text())
                return _observed(answer)
            except (ValueError, KeyError) as error:
                message = f"`{self.python}` could not run the model `{self.model.path}`: {tail}"
                raise PythonUnavailableError(message, python=self.python) from error

    def _question(self, folder: Path, hidden: Mapping[str, Sequence[str]]) -> dict[str, object]:
        model = self.model
        question: dict[str, object] = {
            "load": {
                "model": str(model.path),
                "code": str(model.path / model.code) if model.code else None,
                "loader_module": model.loader_module,
                "data": str(model.path / (model.data or "")),
            },
            "path": [str(one) for one in self.path],
            "hidden": dict(hidden),
        }
        if self.given:
            (folder / "input").write_bytes(self.given.content)
            question |= {"input": str(folder / "input"), "content_type": self.given.content_type}
        return question

    def _run(self, asked: Path) -> str:
        """Run the program and return the last it said."""
        tail: deque[str] = deque(maxlen=_TAIL_LINES)
        limits = child.Limits(time.monotonic() + self.timeout_s)
        # Their variables: it is their Python, and what they set made the model what it is.
        env = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
        try:
            finished = child.run(
                [str(self.python), "-B", PROGRAM, "infer", str(asked)],
                env=env,
                cwd=Path.cwd(),
                limits=limits,
                on_line=tail.append,
            )
        except OSError as error:
            message = f"`{self.python}` cannot be run: {error.strerror}; give another by `--python`"
            raise PythonUnavailableError(message, python=self.python) from error
        if finished.ended_by:
            message = (
                f"the model `{self.model.path}` took over {self.timeout_s:.0f} s to load and answer"
            )
            raise DeadlineExceededError(message, model=self.model.path)
        return "\n".join(tail)


def _observed(document: dict[str, Any]) -> Observed:
    found = [_distribution(one) for one in document["distributions"]]
    modules = {
        name: Module(name, Path(file), found[place].key if place >= 0 else "")
        for name, (file, place) in document["modules"].items()
    }
    failure = document.get("failure")
    return Observed(
        document.get("answer", ""),
        modules,
        [(who, what) for who, what in document["edges"]],
        {one.key: one for one in found},
        document["markers"],
        from_document(failure) if failure else None,
    )


def _distribution(document: dict[str, Any]) -> Distribution:
    return Distribution(
        document["name"],
        document["version"],
        tuple(_parsed(document["requires"])),
        tuple(document["extras"]),
        document["installer"],
        document["origin"] or {},
        document["editable"],
    )


def _parsed(texts: Sequence[str]) -> Iterator[Requirement]:
    for text in texts:
        # What old metadata say and nobody can read, nobody can be held by.
        with contextlib.suppress(InvalidRequirement):
            yield Requirement(text)


def given_of(model: Model) -> Given | None:
    """Return the example of an input that *model* has, if it has one."""
    text = example.read(model)
    return Given(text.encode()) if text else None


def python_of(given: str | None) -> Path:
    """Return the Python *given*, else that of the virtualenv or the PATH of whoever asks.

    Raises:
        RequestInvalidError: there is none.
    """
    active = os.environ.get("VIRTUAL_ENV") or os.environ.get("CONDA_PREFIX")
    named = given or (f"{active}/bin/python" if active else "")
    found = shutil.which(named) if named else shutil.which("python") or shutil.which("python3")
    if not found:
        message = (
            f"there is no Python `{named or 'python'}`; give the one of the training by --python"
        )
        raise RequestInvalidError(message, python=named)
    # Not resolved: a virtualenv's Python is a link, and is one by where it lies.
    path = Path(found).absolute()
    check_path(path)
    return path
