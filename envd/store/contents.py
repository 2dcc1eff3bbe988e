"""What an environment's files were when it was published, and what has changed since.

The record of an attempt has a line per file, directory and link, sorted by path:

    <SHA-256 | dir | link:SHA-256 | other> <mode> <size> <path>

Most files are hardlinks to what the caches hold, and whoever writes to one writes to all.
So what an inode was when it was first seen is known, per artifact (`envd.store.digests`).
What is known is neither read again nor asked for its status. And what was changed through
another environment is recorded as it was, so that a comparison finds it at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

from envd import failpoint
from envd.lock import Artifact
from envd.store.digests import Artifacts
from envd.store.sizes import Sizes
from envd.store.walking import (
    Tree,
    all_escaped,
    described,
    escaped,
    is_shared,
    status,
    unescaped,
    walk,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Contents:
    """What the manifest keeps of the record whose SHA-256 is `digest`.

    `shares` has the bytes of the files that have another name (hardlink), by the SHA-256
    of the artifact they came from.
    """

    sizes: Sizes
    shares: tuple[tuple[str, int], ...]
    digest: str


@dataclass(frozen=True, slots=True)
class Fault:
    """A difference from the record; `path` is below the prefix, escaped if it must be.

    `identity` is the device and the inode of a changed file that has other names: whoever
    has one of them has what was changed. A directory that was added, or is missing, is one
    fault with all that it holds.
    """

    path: str
    kind: Literal["changed", "missing", "added"]
    detail: str
    identity: tuple[int, int] | None = None


def record(prefix: Path, packages: Iterable[Artifact], target: Path, known: Path) -> Contents:
    """Write the record of *prefix*, made of *packages*, to *target*; nothing is flushed.

    *known* is the directory of what the artifacts' inodes were; it is made again as needed.

    Raises:
        OSError: a file cannot be read, or the record cannot be written.
    """
    artifacts = Artifacts(prefix, packages, known)
    tally = _Tally()
    lines: dict[str, str] = {}
    strange: Tree = {}
    for path, entry in walk(prefix, _fail):
        if found := artifacts.known(path, entry):
            what, owner = found
            lines[path] = what
            tally.share(entry.inode(), int(what[what.rindex(" ") :]), owner)
        else:
            strange[path] = entry
    for path, what in described(strange, _fail):
        lines[path] = what
        tally.add(entry := strange[path], artifacts.learn(path, entry, what))
    artifacts.keep()
    failpoint.reach("publish.record")
    paths = sorted(lines)
    shown = zip(paths, all_escaped(paths), strict=True)
    text = "".join([f"{lines[path]} {name}\n" for path, name in shown]).encode()
    target.write_bytes(text)
    return Contents(tally.sizes(), tally.shares(), hashlib.sha256(text).hexdigest())


def faults(prefix: Path, target: Path, digest: str) -> list[Fault]:
    """Compare all of *prefix* with the record *target*, whose SHA-256 was *digest*.

    Nothing is known here: every file is read.
    """
    name = escaped(target.name)
    try:
        text = target.read_bytes()
    except FileNotFoundError:
        return [Fault(name, "missing", "the record of the files is gone")]
    except OSError as error:
        return [Fault(name, "changed", f"the record of the files cannot be read: {error}")]
    if hashlib.sha256(text).hexdigest() != digest:
        return [Fault(name, "changed", "the record of the files is damaged")]
    was = {}
    for line in text.decode().splitlines():
        *what, path = line.split(" ", 3)
        was[unescaped(path)] = " ".join(what)
    return sorted(_Comparison(prefix, was).found, key=lambda one: one.path)


def sharing(prefixes: Mapping[str, Path], found: Iterable[Fault]) -> dict[str, list[str]]:
    """Return where those of *prefixes*, by id, hold the very files that *found* has changed.

    Anywhere: a wheel brings files to any place below a prefix.
    """
    changed = {one.identity for one in found if one.identity}
    if not changed:
        return {}
    held = {env_id: _holding(prefix, changed) for env_id, prefix in prefixes.items()}
    return {env_id: paths for env_id, paths in held.items() if paths}


def _holding(prefix: Path, changed: Collection[tuple[int, int]]) -> list[str]:
    inodes = {inode for _, inode in changed}
    paths = []
    for path, entry in walk(prefix, _pass):
        # Only few are asked for their status.
        if entry.inode() in inodes:
            with contextlib.suppress(OSError):
                if (status(entry).st_dev, entry.inode()) in changed:
                    paths.append(escaped(path))
    return sorted(paths)


class _Tally:
    """Adds up files, each inode once."""

    def __init__(self) -> None:
        self._own = 0
        self._shared: dict[int, int] = {}
        self._shares: Counter[str] = Counter()

    def add(self, entry: os.DirEntry[str], owner: str | None) -> None:
        found = status(entry)
        if is_shared(found):
            self.share(entry.inode(), found.st_size, owner)
        elif not stat.S_ISDIR(found.st_mode):
            self._own += found.st_size

    def share(self, inode: int, size: int, owner: str | None) -> None:
        if inode not in self._shared:
            self._shared[inode] = size
            if owner:
                self._shares[owner] += size

    def sizes(self) -> Sizes:
        return Sizes(self._own + sum(self._shared.values()), self._own)

    def shares(self) -> tuple[tuple[str, int], ...]:
        return tuple(sorted(self._shares.items()))


class _Comparison:
    """The faults of *prefix*, which was *was* by path."""

    def __init__(self, prefix: Path, was: Mapping[str, str]) -> None:
        self.found: list[Fault] = []
        # What has a fault that goes for all it holds.
        self._told: set[str] = set()
        self._was = was
        self._tree: Tree = {}
        self._tree.update(walk(prefix, self._unreadable))
        both = {path: entry for path, entry in self._tree.items() if path in was}
        self._now = dict(described(both, self._unreadable))
        # A directory comes before what it holds.
        for path in sorted(was.keys() | self._tree.keys()):
            if path not in self._told and "." not in self._told:
                self._compare(path)

    def _compare(self, path: str) -> None:
        if path.rpartition("/")[0] in self._told:
            self._told.add(path)
        elif path not in self._tree:
            self._tell(path, "missing", "it is gone")
        elif path not in self._was:
            self._tell(path, "added", "it was not there")
        elif (now := self._now[path]) != (was := self._was[path]):
            is_directory = now.startswith("dir ") and was.startswith("dir ")
            self._tell(path, "changed", _difference(was, now), for_all=not is_directory)

    def _unreadable(self, path: str, error: OSError) -> None:
        if isinstance(error, FileNotFoundError):
            self._tell(path, "missing", "it is gone")
        else:
            self._tell(path, "changed", f"it cannot be read: {error.strerror}")

    def _tell(
        self,
        path: str,
        kind: Literal["changed", "missing", "added"],
        detail: str,
        *,
        for_all: bool = True,
    ) -> None:
        identity = None
        entry = self._tree.get(path)
        if kind == "changed" and entry:
            with contextlib.suppress(OSError):
                if is_shared(found := status(entry)):
                    identity = (found.st_dev, found.st_ino)
        if for_all:
            self._told.add(path)
        self.found.append(Fault(escaped(path), kind, detail, identity))


def _difference(was: str, now: str) -> str:
    (old, mode_was, size_was), (new, mode, size) = was.split(" "), now.split(" ")
    if (kind := _kind(new)) != (kind_was := _kind(old)):
        return f"it is {kind}, and was {kind_was}"
    if kind == "a link":
        return "it points elsewhere"
    differences = []
    if size != size_was:
        differences.append(f"it has {size} bytes, and had {size_was}")
    elif new != old:
        differences.append("its content is another")
    if mode != mode_was:
        differences.append(f"its mode is {mode}, and was {mode_was}")
    return "; ".join(differences)


def _kind(what: str) -> str:
    names = {"dir": "a directory", "link": "a link", "other": "neither file nor directory"}
    return names.get(what.partition(":")[0], "a file")


def _pass(_: str, __: OSError) -> None:
    """Leave out what cannot be read."""


def _fail(_: str, error: OSError) -> NoReturn:
    raise error
