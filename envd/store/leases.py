"""Leases: whoever uses an environment holds its lease file shared, until it ends.

The kernel keeps them, so none outlives its holder, and nobody but the kernel is asked
who holds one: probing with an exclusive lock would make a real taker fail.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from envd.held import open_file, try_lock
from envd.store.layout import Layout


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
        pids = self._pids.get(identity(self._layout.held(f"lease-{env_id}")), ())
        kinds = {True: "worker", False: "process"}
        return tuple(Holder(pid, kinds[pid in self._daemon]) for pid in sorted(pids))


class Lease:
    """An open, shared-locked lease file. Closing it (or dying) ends the lease."""

    def __init__(self, descriptor: int) -> None:
        """Take over a locked *descriptor*."""
        self.descriptor = descriptor

    def close(self) -> None:
        """End the lease, as far as this process holds it."""
        os.close(self.descriptor)


def take(path: Path) -> Lease | None:
    """Take the lease on *path*, or return None while it is being removed."""
    descriptor = open_file(path)
    if try_lock(descriptor, fcntl.LOCK_SH):
        return Lease(descriptor)
    os.close(descriptor)
    return None


Identity = tuple[int, int, int] | None


def locked_by() -> Mapping[Identity, tuple[int, ...]]:
    """Return the pids that hold each locked file, by its `identity`."""
    found: dict[Identity, tuple[int, ...]] = {}
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if "->" in fields or fields[1] != "FLOCK":
            continue
        major, minor, inode = fields[5].split(":")
        key = (int(major, 16), int(minor, 16), int(inode))
        found[key] = (*found.get(key, ()), int(fields[4]))
    return found


def identity(path: Path) -> Identity:
    """Return what `locked_by` knows the file *path* by, or None where there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return os.major(status.st_dev), os.minor(status.st_dev), status.st_ino
