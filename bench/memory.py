"""What processes take of the memory, as the kernel counts it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_MB = 1e6


def below(pid: int) -> Iterator[int]:
    """Yield *pid* and all that it, or any of those, has started."""
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:
            continue
        for child in children:
            yield from below(int(child))


def private_mb(pid: int) -> float:
    """Return what *pid* and all below it have to themselves: no other process has those pages."""
    return sum(_private(one) for one in below(pid)) / _MB


def _private(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        # It has ended.
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Private_"))
