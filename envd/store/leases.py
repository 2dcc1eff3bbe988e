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

from envd.store.held import open_file, try_lock


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds a lease."""

    pid: int
    kind: str

    def document(self) -> dict[str, object]:
        """Return the holder as JSON values."""
        return {"pid": self.pid, "kind": self.kind}


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


def holders() -> Mapping[tuple[int, int, int], tuple[int, ...]]:
    """Return the pids that hold each locked file, by (major, minor, inode)."""
    found: dict[tuple[int, int, int], tuple[int, ...]] = {}
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if "->" in fields or fields[1] != "FLOCK":
            continue
        major, minor, inode = fields[5].split(":")
        key = (int(major, 16), int(minor, 16), int(inode))
        found[key] = (*found.get(key, ()), int(fields[4]))
    return found


def identity(path: Path) -> tuple[int, int, int] | None:
    """Return what `holders` knows the file *path* by, or None where there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return os.major(status.st_dev), os.minor(status.st_dev), status.st_ino
