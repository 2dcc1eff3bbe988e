"""What lies below a root besides environments: how large it is, and what of it may go.

Nothing here is needed for an environment that is ready: what goes is fetched or built
again for the next one. What cannot be read, is half there or goes meanwhile is passed over.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from envd import durable, failpoint, held
from envd.lock import Artifact, CondaPackage
from envd.model.location import lock_of
from envd.store import trees, uvcache
from envd.store.condacache import CondaCache
from envd.store.layout import Layout
from envd.store.trees import Inode, Tree
from envd.store.uvcache import UvCache

Kind = Literal["uv", "conda", "repodata", "wheel", "bytecode", "model"]


@dataclass(frozen=True, slots=True)
class Download:
    """What can go by itself: it is renamed to the trash as a whole.

    `subject` is what a lock calls it: the release of an unpacked wheel, the name of an
    unpacked conda package, the SHA-256 of the artifact that a wheel or bytecode is, or
    nothing. `size` is in bytes, each inode counted for one download only; `linked` are those
    of them that have a name elsewhere too, in environments. `mark` grows when somebody
    begins to use it.
    """

    path: Path
    kind: Kind
    subject: str
    size: int
    linked: int
    age_s: float
    mark: float


@dataclass(frozen=True, slots=True)
class Evicted:
    """The bytes that were freed, and what was left for another time since it is in use."""

    freed: int
    left: tuple[Download, ...]


class Caches:
    """The downloads of one root, and what else takes space there."""

    def __init__(self, layout: Layout, clock: Callable[[], float] = time.time) -> None:
        """Look below the root of *layout*; *clock* says how old things are."""
        self._layout = layout
        self._clock = clock
        self._uv = UvCache(layout.downloads / "uv")
        self._conda = CondaCache(layout)

    def downloads(self) -> list[Download]:
        """Measure all that can go by itself.

        Names in the trash count as gone: what only a removed environment used, none uses.
        """
        return [one for one, _ in self._measured()]

    def holding(self, inodes: Collection[Inode]) -> list[Download]:
        """Return the downloads that new environments would get a file of *inodes* from."""
        wanted = set(inodes)
        return [one for one, tree in self._measured() if not wanted.isdisjoint(tree.shared)]

    def other_bytes(self) -> int:
        """Return what neither can go by itself nor belongs to an environment, in bytes."""
        places = {self._layout.environments, self._layout.trash}
        places |= {path for path, _, _ in self._entries()}
        tree = trees.measure(self._layout.root, places)
        return tree.alone + sum(one.st_size for one in tree.shared.values())

    def evict(self, doomed: Sequence[Download]) -> Evicted:
        """Move *doomed* to the trash, but for what somebody uses just now.

        While an installer runs, all of its cache is left; one that starts meanwhile waits
        for no longer than the renames take.
        """
        freed, left = 0, []
        for one, may_go in self._held(doomed):
            if not may_go:
                left.append(one)
            elif self._discard(one):
                freed += one.size - one.linked
        return Evicted(freed, tuple(left))

    def _held(self, doomed: Sequence[Download]) -> Iterator[tuple[Download, bool]]:
        """Yield each of *doomed* and whether it may go, its users kept out meanwhile."""
        self._forget_recipes({one.subject for one in doomed if one.kind == "wheel"})
        for one in doomed:
            if one.kind in {"wheel", "bytecode", "repodata"}:
                yield one, True
            elif one.kind == "model" and one.path.is_dir():
                with _held_if_free(lock_of(one.path)) as is_free:
                    yield one, is_free and not _is_marked(one)
        if of_conda := [one for one in doomed if one.kind == "conda"]:
            with _held_if_free(self._conda.lock) as is_free:
                yield from ((one, is_free) for one in of_conda)
        if of_uv := [one for one in doomed if one.kind == "uv"]:
            with _held_if_free(self._uv.lock) as is_free:
                idle = {one.path for one in of_uv if is_free and not _is_marked(one)}
                if idle:
                    self._uv.forget(idle)
                yield from ((one, one.path in idle) for one in of_uv)

    def _entries(self) -> Iterator[tuple[Path, Kind, str]]:
        yield from self._of_installers()
        for path in uvcache.entries(self._layout.wheels):
            if path.name != "made":
                yield path, "wheel", path.name
        for tag in uvcache.entries(self._layout.downloads / "bytecode"):
            for path in uvcache.entries(tag):
                yield path, "bytecode", path.name
        for path in uvcache.entries(self._layout.models):
            yield path, "model", ""

    def _of_installers(self) -> Iterator[tuple[Path, Kind, str]]:
        for path in self._uv.archives():
            yield path, "uv", uvcache.release(path)
        for path in self._uv.rest():
            yield path, "uv", ""
        for path in self._conda.packages():
            yield path, "conda", path.name
        for path in self._conda.repodata():
            yield path, "repodata", ""

    def _measured(self) -> list[tuple[Download, Tree]]:
        now = self._clock()
        found = [
            # The mark first: who comes meanwhile is seen when it is to go.
            (path, kind, of, _mark(path, kind), trees.measure(path))
            for path, kind, of in self._entries()
        ]
        names = trees.measure(self._layout.trash).names
        for *_, tree in found:
            names.update(tree.names)
        counted: set[Inode] = set()
        measured = []
        for path, kind, of, mark, tree in found:
            new = {key: one for key, one in tree.shared.items() if key not in counted}
            counted |= new.keys()
            linked = sum(one.st_size for key, one in new.items() if one.st_nlink > names[key])
            download = Download(
                path=path,
                kind=kind,
                subject=of,
                size=tree.alone + sum(one.st_size for one in new.values()),
                linked=linked,
                age_s=max(0.0, now - (mark if kind == "model" else tree.changed)),
                mark=mark,
            )
            measured.append((download, tree))
        return measured

    def _forget_recipes(self, sha256s: Collection[str]) -> None:
        for record in uvcache.entries(self._layout.wheels / "made") if sha256s else ():
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                if json.loads(record.read_bytes())["sha256"] in sha256s:
                    record.unlink()

    def _discard(self, one: Download) -> bool:
        with contextlib.suppress(OSError):
            failpoint.reach("gc.evict")
            return durable.discard(one.path, self._layout.trash) is not None
        return False


def unused(
    downloads: Iterable[Download],
    packages: Collection[Artifact],
    *,
    locked: Collection[str],
    grace_s: float,
    models_s: float,
) -> list[Download]:
    """Return those of *downloads* that nothing uses.

    *packages* are those of the environments that stay, *locked* the SHA-256 of all that
    the kept locks name. What is younger than *grace_s* may be of a build under way; models
    are unused when nobody has asked for them for *models_s*.
    """
    artifacts = {one.sha256 for one in packages}
    used: dict[Kind, Collection[str]] = {
        # Where environments are copies or symlinks, no link says what they were made of.
        "uv": {
            uvcache.release_of(one.name, one.version)
            for one in packages
            if not isinstance(one, CondaPackage)
        },
        "conda": {one.cached_as for one in packages if isinstance(one, CondaPackage)},
        "repodata": (),
        "wheel": artifacts | set(locked),
        "bytecode": artifacts,
        "model": (),
    }
    return [
        one
        for one in downloads
        if not one.linked
        and one.subject not in used[one.kind]
        and one.age_s >= (models_s if one.kind == "model" else grace_s)
    ]


@contextlib.contextmanager
def _held_if_free(path: Path) -> Iterator[bool]:
    """Say whether nobody holds *path*, as `held.if_free`; what cannot be opened is held."""
    with contextlib.ExitStack() as stack:
        is_free = False
        with contextlib.suppress(OSError):
            is_free = stack.enter_context(held.if_free(path))
        yield is_free


def _is_marked(one: Download) -> bool:
    """Whether somebody has begun to use it since it was measured."""
    return _mark(one.path, one.kind) > one.mark


def _mark(path: Path, kind: Kind) -> float:
    """Return what grows when somebody begins to use *path*."""
    if kind == "uv":
        return uvcache.names_of(path)
    if kind == "model":
        for one in (path / "current.json", path):
            with contextlib.suppress(OSError):
                return one.stat().st_mtime
    return 0.0
