"""What the processes of a daemon have: files, memory, children, zombies."""

from __future__ import annotations

import contextlib
import itertools
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")
_HEAP = 64 << 20


@dataclass(frozen=True)
class Taken:
    """How many files a daemon and its spawner have open, and which processes there are."""

    files: dict[str, int]
    processes: int
    zombies: int

    @classmethod
    def by(cls, daemon: int) -> Taken:
        """Look at the daemon with that pid."""
        both = {"daemon": daemon, "spawner": spawner_of(daemon)}
        family = family_of(daemon)
        return cls(
            files={name: files_of(pid) for name, pid in both.items()},
            processes=len(family),
            zombies=sum(") Z " in _read(one, "stat") for one in family),
        )


def spawner_of(daemon: int) -> int:
    """Return the pid of the spawner of the daemon with that pid."""
    return next(one for one in children_of(daemon) if "spawner" in _read(one, "cmdline"))


def children_of(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for one in tasks for child in one.read_text().split()]


def family_of(pid: int) -> list[int]:
    """Return *pid* and all its descendants."""
    found = [pid]
    for one in found:
        # What has ended meanwhile has none.
        with contextlib.suppress(OSError):
            found += children_of(one)
    return found


def files_of(pid: int) -> int:
    """Return how many files the process has open."""
    return len([*Path(f"/proc/{pid}/fd").iterdir()])


def resident(pid: int) -> int:
    """Return how many bytes of memory the process has."""
    return int(_read(pid, "statm").split()[1]) * _PAGE


def heaps(pid: int) -> int:
    """Return how many heaps of threads the process has: glibc reserves 64 MiB for each."""
    rows = [line.split()[:2] for line in _read(pid, "maps").splitlines()]
    places = [([int(end, 16) for end in place.split("-")], may) for place, may in rows]
    return sum(
        (start % _HEAP, may, beyond, end) == (0, "rw-p", "---p", start + _HEAP)
        for ((start, _), may), ((_, end), beyond) in itertools.pairwise(places)
    )


def slope(values: Sequence[float], at: Sequence[float] | None = None) -> float:
    """Return by how much *values* grow for each one more of what they were taken *at*."""
    return statistics.linear_regression(at or range(len(values)), values).slope


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except OSError:
        return ""
