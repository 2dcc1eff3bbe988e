"""Tells whether anything in a model directory has changed, at a few system calls."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from envd.model import files

# Modification time, size and inode; None where there is nothing.
States = tuple[tuple[int, int, int] | None, ...]

# Longer than the steps in which any kernel counts the time of files.
_SETTLED_NS = 50_000_000


@dataclass(frozen=True, slots=True)
class Look:
    """The files and directories of a model, and their states.

    Whatever is added, removed or renamed changes the time of its directory, so that nothing
    need be listed again. A directory that `is_settled` was not changed just before the look:
    within one step of a file system's clock a second change does not show.
    """

    places: tuple[str, ...]
    states: States
    is_settled: bool = field(compare=False)

    def again(self) -> Look | None:
        """Return this if nothing has changed, None where that takes a new look."""
        return self if self.is_settled and states(self.places) == self.states else None


def look(folder: Path, limit: int, left_out: Collection[str]) -> Look:
    """Look at all of the model in *folder*, as `files.tree` does.

    Raises:
        ModelInvalidError: as `files.walk`.
    """
    found = files.tree(folder, folder, limit, left_out)
    places = (str(folder), *(entry.path for _, entry in found))
    now = time.time_ns()
    statuses = [_status(place) for place in places]
    folders = [one.st_mtime_ns for one in statuses if one and stat.S_ISDIR(one.st_mode)]
    is_settled = now - max(folders, default=now) > _SETTLED_NS
    return Look(places, tuple(map(_state, statuses)), is_settled)


def states(places: Iterable[str]) -> States:
    """Return the states of *places*."""
    return tuple([_state(_status(place)) for place in places])


def _status(place: str) -> os.stat_result | None:
    """Return the status of what a link leads to, or of one that leads nowhere."""
    try:
        return os.stat(place)  # noqa: PTH116
    except OSError as error:
        files.raise_shortage(error)
    try:
        return os.lstat(place)
    except OSError:
        return None


def _state(status: os.stat_result | None) -> tuple[int, int, int] | None:
    return (status.st_mtime_ns, status.st_size, status.st_ino) if status else None
