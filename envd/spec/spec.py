"""The canonical spec: what makes two environments the same, and nothing else."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from envd.config import Index
from envd.spec.dependencies import Dependencies
from envd.spec.python import Python
from envd.spec.requirements import Requirement

_VERSION = 1


@dataclass(frozen=True, slots=True)
class Indexes:
    """Where packages come from, in order, without credentials."""

    urls: tuple[str, ...]
    find_links: tuple[str, ...]
    no_index: bool


@dataclass(frozen=True, slots=True)
class Spec:
    """What a model asks for, on one Python. Equal specs have equal keys.

    Requirements are sorted and without duplicates: their order means nothing to a
    resolver. The order of indexes does, and is kept.
    """

    manager: str
    python: Python
    build: tuple[Requirement, ...]
    requirements: tuple[Requirement, ...]
    constraints: tuple[Requirement, ...]
    indexes: Indexes

    @property
    def key(self) -> str:
        """The spec_key: SHA-256 of the canonical document, 64 hexadecimal digits."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    def canonical(self) -> str:
        """Return the canonical document: JSON, keys sorted, no white space."""
        document = {
            "v": _VERSION,
            "manager": self.manager,
            "python": self.python.document(),
            "build": _documents(self.build),
            "requirements": _documents(self.requirements),
            "constraints": _documents(self.constraints),
            "indexes": {
                "urls": self.indexes.urls,
                "find_links": self.indexes.find_links,
                "no_index": self.indexes.no_index,
            },
        }
        return json.dumps(document, sort_keys=True, separators=(",", ":"))


def of(found: Dependencies, python: Python, index: Index) -> Spec:
    """Return the spec of *found* on *python* with the packages of *index*."""
    return Spec(
        manager="virtualenv",
        python=python,
        build=_sorted(found.build),
        requirements=_sorted(found.asked.requirements),
        constraints=_sorted(found.asked.constraints),
        indexes=Indexes(
            urls=tuple(without_credentials(url) for url in index.urls),
            find_links=tuple(without_credentials(link) for link in index.find_links),
            no_index=index.no_index,
        ),
    )


def from_canonical(text: str) -> Spec:
    """Return the spec that `Spec.canonical` wrote."""
    document: dict[str, Any] = json.loads(text)
    return Spec(
        manager=document["manager"],
        python=Python(**document["python"]),
        build=_requirements(document["build"]),
        requirements=_requirements(document["requirements"]),
        constraints=_requirements(document["constraints"]),
        indexes=Indexes(
            urls=tuple(document["indexes"]["urls"]),
            find_links=tuple(document["indexes"]["find_links"]),
            no_index=document["indexes"]["no_index"],
        ),
    )


def without_credentials(url: str) -> str:
    """Return *url* without the user and password in it."""
    # Not by urlsplit: uv takes `name=https://...` as well, whose netloc that does not see.
    return re.sub(r"://[^/?#]*@", "://", url)


def _sorted(requirements: Iterable[Requirement]) -> tuple[Requirement, ...]:
    return tuple(sorted(set(requirements)))


def _documents(requirements: Iterable[Requirement]) -> list[dict[str, Any]]:
    return [
        {"name": one.name, "text": one.text, "hashes": list(one.hashes)} for one in requirements
    ]


def _requirements(documents: Iterable[dict[str, Any]]) -> tuple[Requirement, ...]:
    return tuple(Requirement(one["name"], one["text"], tuple(one["hashes"])) for one in documents)
