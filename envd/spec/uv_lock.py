"""Reads the `uv.lock` that MLflow 3 saves with a model of a uv project.

MLflow installs it with `uv sync --frozen --no-install-project --no-dev`: what the project
depends on, without its extras and its groups, and without itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs

from packaging.utils import canonicalize_name

from envd.spec import locked, toml
from envd.spec.locked import Applies, Contents, Package
from envd.spec.place import Place
from envd.spec.policy import Policy
from envd.spec.requirement_file import Requirements
from envd.spec.toml import Table

_KINDS = ("registry", "git", "url", "path", "directory", "editable", "virtual")


class _Source(NamedTuple):
    """Where a package comes from; of no kind where an edge leaves it out."""

    kind: str = ""
    value: str = ""
    subdirectory: str = ""

    @property
    def is_project(self) -> bool:
        return self.kind in {"editable", "virtual"} and self.value == "."


class _Edge(NamedTuple):
    """What one package asks of another: it, and its `extras`."""

    name: str
    version: str
    source: _Source
    marker: str
    extras: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Node:
    """A package, and what it asks for: by extra, by the empty one always."""

    package: Package
    source: _Source
    edges: dict[str, list[_Edge]]


def read(model: Path, name: str, policy: Policy) -> Contents:
    """Read the lock *name* of *model*.

    Every package the project depends on is judged, whatever Python it is for.

    Raises:
        ModelInvalidError: it is not such a lock, or a package of it cannot be used.
        PolicyDeniedError: *policy* does not allow where a package comes from.
    """
    document = toml.read(model, name)
    if document.values.get("version") != 1:
        why = "it is not a lock of uv of version 1"
        raise document.place.invalid(why)
    graph = _graph(document)
    return Contents(
        document.place,
        document.text("requires-python"),
        document.texts("supported-markers"),
        frozenset(),
        {node.package: _found(node, policy) for node in graph.reached(lambda *_: True)},
        lambda applies: [node.package for node in graph.reached(applies)],
    )


@dataclass(frozen=True, slots=True)
class _Graph:
    """The packages of a lock, in order and by all that an edge may say of them."""

    project: _Node
    nodes: list[_Node]
    by_edge: dict[tuple[str, str, _Source], list[_Node]]

    def reached(self, applies: Applies) -> list[_Node]:
        """Return what is installed where those markers hold that *applies* says."""
        reached = {node for node, _ in self._walked(applies)}
        return [
            node
            for node in self.nodes
            if node in reached and node.source.kind != "virtual" and not node.source.is_project
        ]

    def _walked(self, applies: Applies) -> set[tuple[_Node, str]]:
        """Return every package that the project leads to, with each extra asked of it."""
        left = [(self.project, "")]
        seen = {(self.project, "")}
        while left:
            node, extra = left.pop()
            place = node.package.place
            for edge in node.edges.get(extra, []):
                if applies(place, edge.marker):
                    target = self._target(place, edge)
                    new = {(target, one) for one in ("", *edge.extras)} - seen
                    seen |= new
                    left += new
        return seen

    def _target(self, place: Place, edge: _Edge) -> _Node:
        found = self.by_edge.get((edge.name, edge.version, edge.source), [])
        if len(found) != 1:
            count = "several packages" if found else "no package"
            why = f"it depends on `{edge.name}`, and {count} of the lock can be meant"
            raise place.invalid(why, package=edge.name)
        return found[0]


def _graph(document: Table) -> _Graph:
    nodes = [_node(table) for table in locked.packages(document, "package")]
    projects = [node for node in nodes if node.source.is_project]
    if len(projects) != 1:
        why = f"{len(projects)} packages of it are the project itself; one has to be"
        raise document.place.invalid(why)
    by_edge: dict[tuple[str, str, _Source], list[_Node]] = {}
    for node in nodes:
        one = node.package
        for version in {one.version, ""}:
            for source in (node.source, _Source()):
                by_edge.setdefault((one.name, version, source), []).append(node)
    return _Graph(projects[0], nodes, by_edge)


def _node(table: Table) -> _Node:
    files = [*table.tables("wheels"), table.table("sdist")]
    hashes = locked.sha256s(file.text("hash") for file in files)
    package = Package(table.place, locked.name_of(table), table.text("version"), hashes)
    extras = table.table("optional-dependencies")
    edges = {canonicalize_name(key): _edges(extras, key) for key in extras.values}
    return _Node(package, _source(table), edges | {"": _edges(table, "dependencies")})


def _edges(table: Table, key: str) -> list[_Edge]:
    return [
        _Edge(
            locked.name_of(one),
            one.text("version"),
            _source(one) if "source" in one else _Source(),
            one.text("marker"),
            tuple(canonicalize_name(extra) for extra in one.texts("extra")),
        )
        for one in table.tables(key)
    ]


def _source(table: Table) -> _Source:
    found = table.table("source")
    kinds = [kind for kind in _KINDS if kind in found]
    if len(kinds) != 1 or not found.text(kinds[0]):
        why = f"`source` is none of {', '.join(_KINDS)}"
        raise table.place.invalid(why)
    return _Source(kinds[0], found.text(kinds[0]), found.text("subdirectory"))


def _found(node: _Node, policy: Policy) -> Requirements:
    package, (kind, value, subdirectory) = node.package, node.source
    if kind == "registry":
        return locked.from_index(package, value, policy)
    if kind == "url":
        return locked.from_url(package, value, subdirectory, policy)
    if kind == "git":
        url, _, commit = value.partition("#")
        url, _, query = url.partition("?")
        below = parse_qs(query).get("subdirectory", [""])[-1]
        return locked.from_git(package, url, commit, below, policy)
    return locked.from_path(package, value, policy, editable=kind == "editable")
