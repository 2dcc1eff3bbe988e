"""Leases: whoever uses an environment holds its lease file shared, until it ends.

The kernel keeps them, so none outlives its holder, and nobody but the kernel is asked
who holds one: probing with an exclusive lock would make a real taker fail.
"""

from __future__ import annotations

import fcntl
import functools
import os
import time
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from envd.held import identity, locked_by, open_file, try_lock
from envd.store.layout import Layout

_TRIES, _PAUSE_S = 10, 0.002


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds a lease: the daemon, for a worker of its, or another one."""

    pid: int
    kind: str

    def __str__(self) -> str:
        """Write it for people."""
        return f"a worker of the daemon {self.pid}" if self.kind == "worker" else f"pid {self.pid}"


class Holders:
    """Who holds what below one root, at one moment."""

    def __init__(self, layout: Layout) -> None:
        """Look now."""
        self._layout = layout
        self._pids = locked_by()
        self._daemon = set(self._pids.get(identity(layout.root / "daemon.lock"), ()))

    def of(self, env_id: str) -> tuple[Holder, ...]:
        """Return who holds a lease on *env_id*."""
        pids = self._pids.get(identity(self._layout.leased(env_id)), ())
        return self._named(pids)

    def is_building(self, env_id: str) -> bool:
        """Whether *env_id* is being built, or kept from it."""
        return identity(self._layout.building(env_id)) in self._pids

    def leased(self) -> dict[str, tuple[Holder, ...]]:
        """Return who holds a lease on which environment, of all that are leased."""
        return {
            name: self._named(pids) for name, pids in self._locked(self._layout.leased("")).items()
        }

    def building(self) -> AbstractSet[str]:
        """Return the environments that are being built, or kept from it."""
        return self._locked(self._layout.building("")).keys()

    def working(self) -> list[str]:
        """Return the files held by what locks specs and builds environments, by name."""
        return [name for name in self._names if name.startswith(("spec-", "build-"))]

    def _named(self, pids: Iterable[int]) -> tuple[Holder, ...]:
        kinds = {True: "worker", False: "process"}
        return tuple(Holder(pid, kinds[pid in self._daemon]) for pid in sorted(pids))

    def _locked(self, path: Path) -> dict[str, tuple[int, ...]]:
        names, begin = self._names, path.name
        return {name.removeprefix(begin): names[name] for name in names if name.startswith(begin)}

    @functools.cached_property
    def _names(self) -> dict[str, tuple[int, ...]]:
        """The files that are locked, by name: one reading of their directory finds them all."""
        folder = self._layout.held("any").parent
        where = identity(folder)
        if where is None:
            return {}
        pids = {key[2]: pids for key, pids in self._pids.items() if key and key[:2] == where[:2]}
        with os.scandir(folder) as entries:
            return {one.name: pids[inode] for one in entries if (inode := one.inode()) in pids}


class Lease:
    """An open, shared-locked lease file. Closing it (or dying) ends the lease."""

    def __init__(self, descriptor: int) -> None:
        """Take over a locked *descriptor*."""
        self.descriptor = descriptor

    def close(self) -> None:
        """End the lease, as far as this process holds it."""
        os.close(self.descriptor)


def take(path: Path) -> Lease | None:
    """Take the lease on *path*, or return None while it is being removed.

    Whoever only looks whether it is leased holds it for a moment, which is waited for:
    20 ms at most, for the caller may be an event loop.
    """
    descriptor = open_file(path)
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_PAUSE_S)
        if try_lock(descriptor, fcntl.LOCK_SH):
            return Lease(descriptor)
    os.close(descriptor)
    return None
