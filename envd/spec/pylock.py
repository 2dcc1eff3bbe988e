"""Reads a `pylock.toml` (PEP 751) that lies in a model."""

from __future__ import annotations

from pathlib import Path

from envd.model.texts import shown
from envd.spec import locked, toml
from envd.spec.locked import Contents, Package
from envd.spec.policy import Policy
from envd.spec.requirement_file import Requirements
from envd.spec.toml import Table

_KINDS = ("vcs", "directory", "archive")


def read(model: Path, name: str, policy: Policy) -> Contents:
    """Read the lock *name* of *model*.

    Every package is judged, whatever Python it is for.

    Raises:
        ModelInvalidError: it is not such a lock, or a package of it cannot be used.
        PolicyDeniedError: *policy* does not allow where a package comes from.
    """
    document = toml.read(model, name)
    version = document.text("lock-version")
    if not version.startswith("1."):
        why = f"it is a lock of version `{shown(version)}`; envd reads 1.0 (PEP 751)"
        raise document.place.invalid(why)
    tables = locked.packages(document, "packages")
    entries = [(_package(table), table.text("marker")) for table in tables]
    return Contents(
        document.place,
        document.text("requires-python"),
        document.texts("environments"),
        frozenset(document.texts("default-groups")),
        {one: _found(one, table, policy)
         for (one, _), table in zip(entries, tables, strict=True)},
        lambda applies: [one for one, marker in entries if applies(one.place, marker)],
    )  # fmt: skip


def _package(table: Table) -> Package:
    archive, files = table.table("archive"), _files(table)
    hashes = [
        f"{algorithm}:{file.table('hashes').text(algorithm)}"
        for file in (files if "archive" not in table else [archive])
        for algorithm in file.table("hashes").values
        if algorithm.lower() == "sha256"
    ]
    return Package(
        table.place,
        locked.name_of(table),
        table.text("version"),
        locked.sha256s(hashes),
        table.text("requires-python"),
    )


def _files(table: Table) -> list[Table]:
    sdist = [table.table("sdist")] if "sdist" in table else []
    return [*table.tables("wheels"), *sdist]


def _found(package: Package, table: Table, policy: Policy) -> Requirements:
    files = _files(table)
    kinds = [kind for kind in _KINDS if kind in table] + (["wheels"] if files else [])
    if len(kinds) != 1:
        why = f"`{package.name}` comes from {' and '.join(kinds) or 'nowhere'}; one place is needed"
        raise table.place.invalid(why, package=package.name)
    if kinds == ["wheels"]:
        return _from_files(package, table, files, policy)
    source = table.table(kinds[0])
    subdirectory = source.text("subdirectory")
    if "vcs" in table:
        return _from_repository(package, source, policy)
    if "archive" in table and source.text("url"):
        return locked.from_url(package, source.text("url"), subdirectory, policy)
    is_editable = source.values.get("editable") is True
    path = source.text("path")
    if subdirectory:
        path = f"{path}/{subdirectory}"
    return locked.from_path(package, path, policy, editable=is_editable)


def _from_repository(package: Package, source: Table, policy: Policy) -> Requirements:
    url = source.text("url")
    if source.text("type") != "git" or not url:
        why = f"`{package.name}` comes from a repository that is not git at a URL"
        raise package.place.invalid(why, package=package.name)
    commit, subdirectory = source.text("commit-id"), source.text("subdirectory")
    return locked.from_git(package, url, commit, subdirectory, policy)


def _from_files(package: Package, table: Table, files: list[Table], policy: Policy) -> Requirements:
    """Only the hashes of files count: an index has to have them, whatever URLs stand here."""
    paths = [file.text("path") for file in files if not file.text("url")]
    if not any(paths):
        return locked.from_index(package, table.text("index"), policy)
    if len(files) > 1:
        why = f"`{package.name}` has several files of which the model holds some; lock one"
        raise package.place.invalid(why, package=package.name)
    return locked.from_path(package, paths[0], policy, editable=False)
