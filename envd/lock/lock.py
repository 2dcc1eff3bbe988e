"""A lock: the artifacts an environment is made of."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from envd.spec import Python


@dataclass(frozen=True, slots=True, order=True)
class Package:
    """One artifact: the file a distribution is installed from.

    `name` is normalized (PEP 503), `sha256` hexadecimal.
    """

    name: str
    version: str
    sha256: str
    filename: str


@dataclass(frozen=True, slots=True)
class Lock:
    """The artifacts of one spec, sorted by name."""

    packages: tuple[Package, ...]

    def env_id(self, python: Python) -> str:
        """Return the id of the environment this lock makes on *python*: 32 hex digits.

        It covers the artifacts and the interpreter, never the text of a file: a range that
        resolves to the same artifacts is the same environment.
        """
        artifacts = sorted((one.name, one.version, one.sha256) for one in self.packages)
        text = json.dumps([artifacts, python.document()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def requirements(self) -> str:
        """Return the requirement file that installs this lock and nothing else."""
        return "".join(
            f"{one.name}=={one.version} --hash=sha256:{one.sha256}\n" for one in self.packages
        )

    def document(self) -> dict[str, Any]:
        """Return the lock as JSON values."""
        return {"v": 1, "packages": [asdict(one) for one in self.packages]}


def from_document(document: dict[str, Any]) -> Lock:
    """Return the lock that `Lock.document` described."""
    return Lock(tuple(Package(**one) for one in document["packages"]))
