"""Cgroups of one process each: what it and its children may take together.

Where the kernel's second version has the controllers of memory, processes and CPU, and envd
was given a part of that tree (systemd's `Delegate=yes`), that is used; else the first
version's hierarchies, where envd may make groups in them; else there are none.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from envd import process

_PERIOD_US = 100_000
_CONTROLLERS = ("memory", "pids", "cpu")
# What has been killed may take a moment to be gone.
_PATIENCE_S, _POLL_S = 2.0, 0.01
_BESIDE = ".daemon"
_count = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one worker, or one program of a build, may take; 0 sets no limit.

    Memory in bytes, processors, and processes with their threads.
    """

    memory: int = 0
    cpus: float = 0
    processes: int = 0

    @property
    def are_none(self) -> bool:
        """Whether there are none."""
        return self == NO_LIMITS


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Tree:
    """Where groups are made: a folder for each controller, all the same in version 2."""

    version: int
    folders: Mapping[str, Path]


class Group:
    """One group, in the hierarchies it needs; `procs` are what a process joins it by."""

    def __init__(self, tree: Tree, limits: Limits) -> None:
        """Make it.

        Raises:
            OSError: it cannot be made.
        """
        name = f"envd.{process.stamp()}.{next(_count)}"
        self._tree = tree
        self._folders: list[Path] = []
        self.procs: list[int] = []
        try:
            for controller, files in _files(tree.version, limits).items():
                self._make(tree.folders[controller] / name, files)
        except OSError:
            self.close()
            raise

    def _make(self, folder: Path, files: Mapping[str, str]) -> None:
        if folder not in self._folders:
            folder.mkdir()
            self._folders.append(folder)
            self.procs.append(os.open(folder / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))
        for file, text in files.items():
            (folder / file).write_text(text)

    def let_go(self) -> None:
        """Close what it is joined by."""
        while self.procs:
            os.close(self.procs.pop())

    def ran_out(self) -> bool:
        """Whether a process in it was killed for want of memory."""
        folder = next((one for one in self._folders if self._is_of_memory(one)), None)
        if folder is None:
            return False
        file = "memory.events" if self._tree.version == 2 else "memory.oom_control"  # noqa: PLR2004
        with contextlib.suppress(OSError, ValueError, KeyError):
            lines = (folder / file).read_text().splitlines()
            return int(dict(line.split() for line in lines)["oom_kill"]) > 0
        return False

    def _is_of_memory(self, folder: Path) -> bool:
        return folder.parent == self._tree.folders["memory"]

    def close(self) -> None:
        """Remove it, once nothing is left in it."""
        self.let_go()
        deadline = time.monotonic() + _PATIENCE_S
        while self._folders:
            try:
                self._folders[-1].rmdir()
            except FileNotFoundError:
                pass
            except OSError:
                if time.monotonic() > deadline:
                    # The next daemon sweeps it.
                    return
                time.sleep(_POLL_S)
                continue
            self._folders.pop()


def _files(version: int, limits: Limits) -> dict[str, dict[str, str]]:
    """Return what is written for *limits*, by controller and file."""
    found: dict[str, dict[str, str]] = {}
    quota = int(limits.cpus * _PERIOD_US)
    if version == 1:
        if limits.memory:
            found["memory"] = {"memory.limit_in_bytes": str(limits.memory)}
        if limits.processes:
            found["pids"] = {"pids.max": str(limits.processes)}
        if quota:
            period, most = "cpu.cfs_period_us", "cpu.cfs_quota_us"
            found["cpu"] = {period: str(_PERIOD_US), most: str(quota)}
        return found
    if limits.memory:
        found["memory"] = {"memory.max": str(limits.memory), "memory.oom.group": "1"}
    if limits.processes:
        found["pids"] = {"pids.max": str(limits.processes)}
    if quota:
        found["cpu"] = {"cpu.max": f"{quota} {_PERIOD_US}"}
    return found


@functools.cache
def tree() -> Tree | None:
    """Return where this process may make groups, if it may; what the dead left there goes."""
    found = _second() or _first()
    if found:
        for folder in set(found.folders.values()):
            _sweep(folder)
    return found


def name(found: Tree | None) -> str:
    """Return what *found* is called."""
    return f"v{found.version}" if found else ""


def _second() -> Tree | None:
    """Return the part of version 2's tree that envd was given.

    A group with processes has no groups below it that are limited: those of it move into
    one of their own beside the others.
    """
    for mounted in _mounted("cgroup2"):
        folder = mounted / _own("").lstrip("/")
        is_moved = folder.name.endswith(_BESIDE)
        folder = folder.parent if is_moved else folder
        try:
            given = set((folder / "cgroup.controllers").read_text().split())
            if not given >= set(_CONTROLLERS):
                return None
            if not is_moved:
                _move(folder, folder / f"envd.{process.stamp()}{_BESIDE}")
            wanted = " ".join(f"+{one}" for one in _CONTROLLERS)
            (folder / "cgroup.subtree_control").write_text(wanted)
        except OSError:
            return None
        return Tree(2, dict.fromkeys(_CONTROLLERS, folder))
    return None


def _move(folder: Path, beside: Path) -> None:
    beside.mkdir(exist_ok=True)
    for pid in (folder / "cgroup.procs").read_text().split():
        with contextlib.suppress(ProcessLookupError):
            (beside / "cgroup.procs").write_text(pid)


def _first() -> Tree | None:
    found = {}
    for controller in _CONTROLLERS:
        folders = [
            mounted / _own(controller).lstrip("/") for mounted in _mounted("cgroup", controller)
        ]
        usable = [one for one in folders if os.access(one, os.W_OK)]
        if not usable:
            return None
        found[controller] = usable[0]
    return Tree(1, found)


def _own(controller: str) -> str:
    """Return the group of this process, of a controller of version 1, or of version 2."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return path
    return "/"


def _mounted(kind: str, option: str = "") -> Iterator[Path]:
    """Yield where a hierarchy of that *kind* with that *option* is mounted."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, target, found, options, *_ = line.split()
        if found == kind and (not option or option in options.split(",")):
            yield Path(target)


def _sweep(folder: Path) -> None:
    for one in folder.glob("envd.*"):
        if process.is_stamp_of_the_dead(one.name.removeprefix("envd.")):
            with contextlib.suppress(OSError):
                one.rmdir()
