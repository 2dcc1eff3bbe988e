"""The canonical spec: what makes two environments the same, and nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from envd.secrets import without_credentials
from envd.settings.sections import Index
from envd.spec.dependencies import Dependencies
from envd.spec.options import Options
from envd.spec.python import Python
from envd.spec.requirement import Requirement
from envd.spec.urls import PYPI, canonical_host, is_pypi

VERSION = 4
# What a guess at the value of a variable costs: about ten milliseconds, and four megabytes.
_GUESS = {"n": 1 << 12, "r": 8, "p": 1, "dklen": 16}


@dataclass(frozen=True, slots=True)
class Indexes:
    """Where packages come from, in order, without credentials; no `urls` means PyPI.

    With `best_match` every index is asked for every package, as pip does; else the first
    that has one has it.
    """

    urls: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    no_index: bool = False
    best_match: bool = False


@dataclass(frozen=True, slots=True)
class Spec:
    """What a model asks for, on one Python. Equal specs have equal keys.

    Requirements are sorted and without duplicates: their order means nothing to a
    resolver. The order of indexes does, and is kept. `as_of` is a month (`2024-02`), or
    empty for today. `bounds` (`mlflow>=2.9`) hold where the packages of then allow it. A
    `closed` spec is a whole lock: nothing is added to its requirements.

    Where the manager is conda, `packages` are its match specs, sorted, from `channels`, in
    order; the requirements are those of the pip section, and `python` has no more than what
    is known before the packages are chosen. `variables` are the names of what is set for
    whatever runs in the environment, each with what `told_apart` makes of its value, which may be
    secret: the document is shown and kept.
    """

    manager: str
    python: Python
    build: tuple[Requirement, ...]
    requirements: tuple[Requirement, ...]
    constraints: tuple[Requirement, ...]
    build_constraints: tuple[str, ...]
    bounds: tuple[str, ...]
    indexes: Indexes
    only_binary: tuple[str, ...]
    no_binary: tuple[str, ...]
    prereleases: bool
    as_of: str
    closed: bool
    channels: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()

    @property
    def key(self) -> str:
        """The spec_key: SHA-256 of the canonical document, 64 hexadecimal digits."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    def canonical(self) -> str:
        """Return the canonical document: JSON, keys sorted, no white space."""
        return json.dumps({"v": VERSION} | asdict(self), sort_keys=True, separators=(",", ":"))


def of(found: Dependencies, python: Python, index: Index) -> Spec:
    """Return the spec of *found* on *python* with the packages of *index*."""
    found = found.on(python)
    asked = found.asked
    return Spec(
        manager=found.manager,
        python=python,
        build=_sorted(found.build),
        requirements=_sorted(asked.requirements),
        constraints=_sorted(asked.constraints),
        build_constraints=tuple(sorted(found.build_constraints)),
        bounds=tuple(sorted(found.bounds)),
        indexes=indexes(asked.options, index),
        only_binary=tuple(sorted({*asked.options.only_binary, *found.only_binary})),
        no_binary=tuple(sorted(asked.options.no_binary)),
        prereleases=asked.options.prereleases,
        as_of=(found.day or "")[: len("2024-02")],
        closed=found.closed,
        channels=found.channels,
        packages=tuple(sorted({one.text for one in found.packages})),
        variables=tuple((name, told_apart(name, value)) for name, value in sorted(found.variables)),
    )


def told_apart(name: str, value: str) -> str:
    """Return what tells the *value* of the variable *name* from others, and is not it."""
    return hashlib.scrypt(value.encode(errors="surrogatepass"), salt=name.encode(), **_GUESS).hex()


def indexes(options: Options, index: Index) -> Indexes:
    """Return where packages come from by *options* of a model and the settings of *index*."""
    ordinary = tuple(_url(url) for url in index.urls) or (PYPI,)
    named = (options.index_url or PYPI, *options.extra_index_urls)
    found = [url for name in named for url in (ordinary if name == PYPI else (name,))]
    urls = tuple(dict.fromkeys(found))
    links = tuple(without_credentials(link) for link in index.find_links)
    return Indexes(
        urls=() if urls == (PYPI,) else urls,
        find_links=tuple(dict.fromkeys((*links, *options.find_links))),
        no_index=index.no_index or options.no_index,
        best_match=len(set(named)) > 1,
    )


def _url(url: str) -> str:
    bare = canonical_host(without_credentials(url)).rstrip("/")
    return PYPI if is_pypi(bare) else bare


def from_canonical(text: str) -> Spec:
    """Return the spec that `Spec.canonical` wrote.

    Raises:
        KeyError, TypeError, ValueError: it was written by another version.
    """
    document = json.loads(text, object_hook=_with_tuples)
    if (version := document.pop("v")) != VERSION:
        message = f"it is a spec of version {version}; this one is {VERSION}"
        raise ValueError(message)
    for key in ("build", "requirements", "constraints"):
        document[key] = tuple(Requirement(**one) for one in document[key])
    document["python"] = Python(**document["python"])
    document["variables"] = tuple((name, value) for name, value in document["variables"])
    document["indexes"] = Indexes(**document["indexes"])
    return Spec(**document)


def _with_tuples(found: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value
            for key, value in found.items()}  # fmt: skip


def _sorted(requirements: Iterable[Requirement]) -> tuple[Requirement, ...]:
    return tuple(sorted(set(requirements)))
