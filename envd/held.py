"""The kernel's locks: flock on files that are never unlinked.

`filelock` hides its descriptor and unlocks it explicitly; here an installer inherits the
descriptor, so that the file stays held until the last writer is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from envd import process

_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Owner:
    """Who holds a file exclusively: a process, and the group of the installer it runs."""

    pid: int
    started: str
    host: str
    group: int | None

    def is_alive(self) -> bool:
        """Whether the process still runs (and is not another with the same pid)."""
        return _start_time(self.pid) == self.started


class Held:
    """A file held exclusively by this process."""

    def __init__(self, path: Path, descriptor: int) -> None:
        """Take over the locked *descriptor* of *path*."""
        self.path, self.descriptor = path, descriptor
        self.names_installer(None)

    def names_installer(self, group: int | None) -> None:
        """Write into the file who holds it, and the process *group* that works for it."""
        pid = os.getpid()
        text = json.dumps([pid, _start_time(pid), os.uname().nodename, group])
        os.pwrite(self.descriptor, text.ljust(256).encode(), 0)


@contextlib.contextmanager
def exclusively(path: Path, on_wait: Callable[[Owner | None], None]) -> Iterator[Held]:
    """Hold *path*, waiting for whoever holds it; *on_wait* is told once whom.

    Where the holder died and left an installer behind that still writes, that
    installer's process group is killed.
    """
    descriptor = open_file(path)
    try:
        _acquire(path, descriptor, on_wait)
        yield Held(path, descriptor)
    finally:
        os.close(descriptor)


def open_file(path: Path) -> int:
    """Open *path* to take a lock on, making it if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _acquire(path: Path, descriptor: int, on_wait: Callable[[Owner | None], None]) -> None:
    is_told = False
    while not try_lock(descriptor, fcntl.LOCK_EX):
        owner = read_owner(path)
        if not is_told:
            on_wait(owner)
            is_told = True
        if owner and not owner.is_alive():
            _kill_orphans(path, owner)
        time.sleep(_POLL_S)


@contextlib.contextmanager
def if_free(path: Path) -> Iterator[bool]:
    """Say whether nobody holds *path*, and let nobody take it meanwhile if so."""
    descriptor = open_file(path)
    try:
        yield try_lock(descriptor, fcntl.LOCK_EX)
    finally:
        os.close(descriptor)


def try_lock(descriptor: int, operation: int) -> bool:
    """Take the lock if that needs no waiting."""
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def read_owner(path: Path) -> Owner | None:
    """Return who wrote itself into *path* last, or None."""
    try:
        return Owner(*json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _kill_orphans(path: Path, owner: Owner) -> None:
    # The group id may have been given to strangers since; only one that has this very
    # file open is the dead builder's.
    if owner.group and any(_has_open(pid, path) for pid in _members(owner.group)):
        process.kill_group(owner.group)


def _members(group: int) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(ProcessLookupError):
                if os.getpgid(int(entry.name)) == group:
                    yield int(entry.name)


def _has_open(pid: int, path: Path) -> bool:
    wanted = path.stat()
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found = entry.stat()
                if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                    return True
    return False


def _start_time(pid: int) -> str | None:
    """Return when *pid* started, in clock ticks since boot: with it a pid is unique."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *rest = text.rpartition(")")[2].split()
    return None if state in {"Z", "X"} else rest[18]
