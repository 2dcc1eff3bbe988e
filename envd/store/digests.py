"""What the files of artifacts were when they were first seen, by inode.

    <inode> <path in site-packages, or below the prefix after a slash><tab><SHA-256> <mode> <size>

A file per artifact, below `cache/digests`, its own checksum in the first line.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path

from envd import durable
from envd.lock import Artifact, CondaPackage, conda_meta, wheel_records
from envd.store import uvcache
from envd.store.walking import escaped, is_shared, site, status, unescaped

# Two artifacts may bring one path, and either file may be the one that is linked.
_KEPT_PER_PATH = 2
_METADATA = re.compile(r"^\d+ ([^/]+?)-([^/]+)\.dist-info/")


class Artifacts:
    """What the inodes of artifacts' files were at first sight, and whose new ones are."""

    def __init__(self, prefix: Path, packages: Iterable[Artifact], folder: Path) -> None:
        self._packages = tuple(packages)
        self._prefix, self._site = prefix, site(prefix)
        self._folder = folder
        self._begun = _begun(prefix)
        self._known: dict[str, str] = {}
        self._of: dict[str, str] = {}
        for one in self._packages:
            known = _read(folder / one.sha256)
            self._known |= known
            self._of |= dict.fromkeys(known, one.sha256)
        self._learnt: dict[str, dict[str, str]] = {}

    @cached_property
    def _owners(self) -> Mapping[str, str]:
        of_conda = {
            self._name(path): sha256 for path, sha256 in _of_conda(self._prefix, self._packages)
        }
        return of_conda | _owners(self._prefix / self._site, self._packages)

    def known(self, path: str, entry: os.DirEntry[str]) -> tuple[str, str] | None:
        """Return what the file *path* was when its inode was first seen, and whose it is."""
        key = f"{entry.inode()} {self._name(path)}"
        if (what := self._known.get(key)) is None:
            return None
        # What this build has compiled may have the inode of what is no more.
        if path.endswith(".pyc") and status(entry).st_mtime_ns >= self._begun:
            return None
        return what, self._of[key]

    def learn(self, path: str, entry: os.DirEntry[str], what: str) -> str | None:
        """Keep in mind that *path* is *what*, if others share it; return whose it is then."""
        if not is_shared(status(entry)):
            return None
        name = self._name(path)
        if owner := self._owner(name):
            self._learnt.setdefault(owner, {})[f"{entry.inode()} {name}"] = what
        return owner

    def keep(self) -> None:
        """Write what was learnt, the newest last."""
        for one, learnt in self._learnt.items():
            old = _read(self._folder / one)
            kept = {key: what for key, what in old.items() if key not in learnt} | learnt
            # Without it the next record takes longer.
            with contextlib.suppress(OSError):
                _write(self._folder / one, kept)

    def _owner(self, name: str) -> str | None:
        """Return the SHA-256 of the artifact that brought *name*, or its source."""
        if found := self._owners.get(name):
            return found
        folder, is_compiled, file = name.rpartition("__pycache__/")
        return self._owners.get(f"{folder}{file.split('.')[0]}.py") if is_compiled else None

    def _name(self, path: str) -> str:
        return path[len(self._site) :] if path.startswith(self._site) else f"/{path}"


def release(path: Path) -> str:
    """Return the release that the digests in the file *path* are of, or nothing."""
    found = (_METADATA.search(key) for key in _read(path))
    name, version = next((one.groups() for one in found if one), ("", ""))
    return uvcache.release_of(name, version) if name else ""


def _owners(packages_folder: Path, packages: Iterable[Artifact]) -> dict[str, str]:
    """Return the artifacts' SHA-256 by the names of their files, as `Artifacts` names them."""
    # What conda has installed may have a RECORD too, and is told by conda's own.
    artifacts = {one.name: one.sha256 for one in packages if not isinstance(one, CondaPackage)}
    return {
        _named(one): artifacts[name]
        for name, record in wheel_records.records(packages_folder).items()
        if name in artifacts
        for one in wheel_records.files(record)
    }


def _named(name: str) -> str:
    # From lib/python*/site-packages, where nothing else lies above a prefix.
    return f"/{name.removeprefix('../../../')}" if name.startswith("../../../") else name


def _of_conda(prefix: Path, packages: Iterable[Artifact]) -> Iterator[tuple[str, str]]:
    """Yield the files of conda packages, below *prefix*, with the SHA-256 of the artifact."""
    for one in packages:
        if isinstance(one, CondaPackage):
            yield from ((path, one.sha256) for path in conda_meta.files(prefix, one))


def _read(path: Path) -> dict[str, str]:
    """Read what is known of one artifact: nothing where it is damaged."""
    try:
        digest, _, body = path.read_text().partition("\n")
        known = dict(line.split("\t") for line in body.splitlines())
    except (OSError, ValueError):
        return {}
    if hashlib.sha256(body.encode()).hexdigest() != digest:
        return {}
    return {unescaped(key): what for key, what in known.items()} if "\\" in body else known


def _write(path: Path, known: dict[str, str]) -> None:
    """Replace what is known of one artifact, with the newest of each of its paths."""
    count: Counter[str] = Counter()
    lines = []
    for key, what in reversed(known.items()):
        name = key.partition(" ")[2]
        count[name] += 1
        if count[name] <= _KEPT_PER_PATH:
            lines.append(f"{escaped(key)}\t{what}\n")
    body = "".join(reversed(lines))
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = durable.unfinished(path)
    beside.write_text(f"{hashlib.sha256(body.encode()).hexdigest()}\n{body}")
    beside.replace(path)


def _begun(prefix: Path) -> int:
    """Return when the build began: the first file is the virtualenv's own, or conda's."""
    for name in ("pyvenv.cfg", "conda-meta/history"):
        with contextlib.suppress(OSError):
            return (prefix / name).stat().st_mtime_ns
    return 0
