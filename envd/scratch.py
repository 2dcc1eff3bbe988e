"""Directories to work in for a while, which are swept where whoever made them was killed.

Whoever made one holds it, by the kernel's lock. A pid would not tell whether that still lives:
a container that is started again has the pids of the one before, and sees none of another's.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from envd import process

_OPENED = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Scratch:
    """A directory that this process holds, by an open `descriptor`, until it ends."""

    path: Path
    descriptor: int

    def remove(self) -> None:
        """Remove it and let go; what cannot be removed is swept later."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self.descriptor)


def begin(above: Path, prefix: str = "", what: str = "") -> Scratch:
    """Make a directory for *what* this process does in *above*, and hold it.

    Its name begins with *prefix*, for `left`.

    Raises:
        OSError: it cannot be made.
    """
    above.mkdir(parents=True, exist_ok=True)
    name = f"{prefix}{process.stamp()}.{what}{'.' if what else ''}{secrets.token_hex(8)}"
    # Seen by nobody before it is held.
    hidden = above / f".{name}"
    hidden.mkdir(mode=0o700)
    descriptor = os.open(hidden, _OPENED)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return Scratch(hidden.rename(above / name), descriptor)
    except BaseException:
        os.close(descriptor)
        raise


@contextmanager
def scratch(root: Path, what: str) -> Iterator[Path]:
    """Yield a directory below *root* for *what* this process does, and remove it then."""
    found = begin(root / "scratch", what=what)
    try:
        yield found.path
    finally:
        found.remove()


def left(above: Path, prefix: str = "") -> Iterator[Path]:
    """Yield the directories in *above*, called with *prefix*, that nobody holds any more."""
    yield from (one for one in above.glob(f"{prefix}[!.]*") if _is_free(one))
    # Those were not held yet, and are empty.
    hidden = f".{prefix}"
    for one in above.glob(f"{hidden}*"):
        if process.is_stamp_of_the_dead(one.name.removeprefix(hidden)):
            yield one


def _is_free(folder: Path) -> bool:
    with suppress(OSError):
        descriptor = os.open(folder, _OPENED)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(descriptor)
        return True
    return False
