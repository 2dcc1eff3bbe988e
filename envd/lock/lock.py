"""A lock: the artifacts an environment is made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from envd.events import Note
from envd.spec import Python
from envd.spec.conda_package import CondaPackage, conda_package
from envd.spec.policy import Policy
from envd.spec.python import python_of_conda


@dataclass(frozen=True, slots=True, order=True)
class Package:
    """One artifact, always a wheel: the file a distribution is installed from.

    `name` is normalized (PEP 503), `sha256` hexadecimal. It comes from an index, from
    its `url`, or from where envd keeps it; what is kept was `made_from` a source archive
    (`https://...#sha256=...&subdirectory=...`), a repository (`git+https://...@commit`),
    or a package of the model (`./...`).
    """

    name: str
    version: str
    sha256: str
    filename: str
    url: str = ""
    origin: Literal["index", "url", "kept"] = "index"
    made_from: str = ""


Artifact = Package | CondaPackage


@dataclass(frozen=True, slots=True)
class Lock:
    """The artifacts of one spec, sorted by name.

    A `conda` environment is made of those packages, the others go on top of it. Its
    `variables` are those of the spec: their values are not in it.

    `as_of` is the day that what the model left open was resolved as of, empty for the day
    it was locked; `day` is the day of logging that the answer depends on, empty where it
    is that of the whole month. None of these are part of the environment's id.
    """

    packages: tuple[Package, ...]
    as_of: str = ""
    notes: tuple[Note, ...] = ()
    day: str = ""
    conda: tuple[CondaPackage, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """All that the environment is made of."""
        return (*self.conda, *self.packages)

    def python(self, asked: Python) -> Python:
        """Return the Python of the environment: its own, else that which it is built on.

        Before the packages are chosen no more is known than was *asked* for.
        """
        own = next((one.version for one in self.conda if one.name == "python"), "")
        return python_of_conda(own) if own else asked

    def env_id(self, asked: Python) -> str:
        """Return the id of the environment this lock makes on *asked*: 32 hex digits.

        It covers the artifacts and the interpreter, never the text of a file: a range that
        resolves to the same artifacts is the same environment.
        """
        what: list[Any] = [sorted((one.name, one.version, one.sha256) for one in self.packages)]
        if self.conda:
            # What a channel has built anew has another hash.
            what += [sorted((one.name, one.sha256) for one in self.conda), self.variables]
        text = json.dumps([*what, self.python(asked).document()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def requirements(self, path: Callable[[str, str], Path]) -> str:
        """Return the requirement file that installs this lock and nothing else.

        *path* says where the wheel of a SHA-256 and a file name is kept.
        """
        lines = []
        for one in self.packages:
            what = f"{one.name}=={one.version}"
            if one.origin == "url":
                what = f"{one.name} @ {one.url}"
            elif one.origin == "kept":
                what = f"{one.name} @ {path(one.sha256, one.filename).as_uri()}"
            lines.append(f"{what} --hash=sha256:{one.sha256}\n")
        return "".join(lines)

    def check(self, policy: Policy) -> None:
        """See that *policy* allows what the lock was made of.

        Raises:
            PolicyDeniedError: it does not.
        """
        for one in self.packages:
            if one.made_from and not one.made_from.endswith(".whl"):
                policy.built(one.name, one.made_from)

    def document(self) -> dict[str, Any]:
        """Return the lock as JSON values."""
        return {
            "v": 3,
            "packages": [asdict(one) for one in self.packages],
            "conda": [asdict(one) for one in self.conda],
            "variables": self.variables,
            "as_of": self.as_of,
            "notes": [note.document() for note in self.notes],
            "day": self.day,
        }


def from_document(document: dict[str, Any]) -> Lock:
    """Return the lock that `Lock.document` described, in this version or an earlier one."""
    return Lock(
        tuple(Package(**one) for one in document["packages"]),
        document.get("as_of", ""),
        tuple(Note(**note) for note in document.get("notes", ())),
        document.get("day", ""),
        tuple(map(conda_package, document.get("conda", ()))),
        tuple((name, value) for name, value in document.get("variables", ())),
    )
