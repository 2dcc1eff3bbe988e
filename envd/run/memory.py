"""How much memory processes take: their share of what they have in common counted once."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable
from pathlib import Path


def taken(pid: int, without: Collection[int] = ()) -> int:
    """Return how many bytes the process *pid* takes, its children included; 0 if it is gone.

    Those *without* which it is meant are left out, with their children. Proportional
    shares (`Pss`): what templates and workers have in common is divided among them.
    """
    return sum(_share(one) for one in family(pid, without))


def family(pid: int, without: Collection[int] = ()) -> list[int]:
    """Return *pid* and all its descendants."""
    found = [pid]
    for one in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{one}/task").iterdir():
                children = map(int, (task / "children").read_text().split())
                found += (child for child in children if child not in without)
    return found


def inside(outer: int, pid: int) -> int:
    """Return the pid here of the child that the template within *outer* calls *pid*, or 0."""
    found = family(outer)
    # The template is the first in there, and names its children as it is named itself.
    level = len(_names(found[1])) - 1 if len(found) > 1 else 0
    return next((one for one in found if _names(one)[level : level + 1] == [pid]), 0)


def total() -> int:
    """Return how many bytes of memory this machine has."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0


def _names(pid: int) -> list[int]:
    """Return what *pid* is called, from here to the innermost namespace."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return [int(one) for one in line.split()[1:]]
    return []


def _share(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def least_used(used: Iterable[tuple[float, int, bool]], budget: int) -> list[int]:
    """Return which of *used* must go for *budget* to hold: indexes.

    Of each there is its last use, its bytes, and whether it may go. The longest unused go first.
    """
    items = list(used)
    over = sum(size for _, size, _ in items) - budget
    chosen = []
    for place in sorted(range(len(items)), key=lambda one: items[one][0]):
        _, size, may_go = items[place]
        if over <= 0:
            break
        if may_go:
            chosen.append(place)
            over -= size
    return chosen
