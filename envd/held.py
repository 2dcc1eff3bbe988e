"""The kernel's locks: flock on files that are never unlinked.

`filelock` hides its descriptor; here an installer inherits it, so that the file of a holder
that died stays held until the last writer is gone.

Whoever holds a file writes itself into it, and blanks it when it lets go: what still
stands in a file that is free was written by one that died.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from envd import process
from envd.errors import BuildCancelledError
from envd.events import Progress

Identity = tuple[int, int, int] | None

_POLL_S = 0.05
# One page: longer than any entry, and read as a whole.
_SIZE = 4096


@dataclass(frozen=True, slots=True)
class Owner:
    """Who holds a file exclusively: a process, the work it does for that, and how far it is.

    `namespace` says whose pids are meant: those of one boot and namespace; `began` is when
    it took the file, by CLOCK_BOOTTIME. Only builders have a `log`.
    """

    pid: int
    started: str | None
    host: str
    namespace: str
    token: str
    began: float
    log: Path | None = None
    progress: Progress | None = None

    def is_alive(self) -> bool:
        """Whether the process still runs (and is not another with the same pid).

        Of another host or namespace nothing is known but that the file is held.
        """
        return not self.is_here() or process.start_time(self.pid) == self.started

    def is_here(self) -> bool:
        """Whether its pid means the same here."""
        return (self.host, self.namespace) == (os.uname().nodename, process.namespace())


class Held:
    """A file held exclusively by this process."""

    def __init__(
        self, path: Path, descriptor: int, log: Path | None = None, within: Held | None = None
    ) -> None:
        """Take over the locked *descriptor* of *path*, ending what a dead holder left.

        *log* is where others can read what is done; it may be a part of the work *within*.
        """
        self.path, self.descriptor = path, descriptor
        _end_dead(read_owner(path))
        pid = os.getpid()
        self._owner = Owner(
            pid,
            process.start_time(pid),
            os.uname().nodename,
            process.namespace(),
            process.new_token(within.token if within else None),
            time.clock_gettime(time.CLOCK_BOOTTIME),
            log,
        )
        self._write(json.dumps(_document(self._owner)))

    @property
    def token(self) -> str:
        """What the work is called that is done while this is held."""
        return self._owner.token

    def tell(self, progress: Progress) -> None:
        """Let whoever waits know how far the work is."""
        self._write(json.dumps(_document(replace(self._owner, progress=progress))))

    def blank(self) -> None:
        """Leave nobody's name in the file."""
        self._write("")

    def _write(self, text: str) -> None:
        # Always as long: in one write, and nothing is left of a longer text.
        os.pwrite(self.descriptor, text.encode().ljust(_SIZE), 0)


@contextlib.contextmanager
def exclusively(
    path: Path,
    on_wait: Callable[[Owner | None], None],
    log: Path | None = None,
    within: Held | None = None,
) -> Iterator[Held]:
    """Hold *path*, waiting for whoever holds it; *on_wait* is told whom, again and again.

    Where the holder died, the processes that still work for it are ended first. Others
    are told of *log*. The work is a part of that which is done *within*.

    Raises:
        BuildCancelledError: what it waited for was cancelled.
    """
    descriptor = open_file(path)
    waited_for = set()
    try:
        while not try_lock(descriptor, fcntl.LOCK_EX):
            owner = read_owner(path)
            waited_for.add(owner.token if owner else "")
            _end_dead(owner)
            on_wait(owner)
            time.sleep(_POLL_S)
        found = Held(path, descriptor, log, within)
        try:
            if _cancelled(path) in waited_for:
                message = "the build that this waited for was cancelled"
                raise BuildCancelledError(message)
            yield found
        finally:
            found.blank()
    finally:
        # A process that got away from it may have inherited the descriptor.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def cancel(path: Path, owner: Owner) -> None:
    """Let those who wait for *owner*, which holds *path*, wait no longer once it has let go."""
    # On a full disk they take it over instead.
    with contextlib.suppress(OSError):
        _cancellation(path).write_text(owner.token)


def _cancelled(path: Path) -> str | None:
    try:
        return _cancellation(path).read_text()
    except FileNotFoundError:
        return None


def _cancellation(path: Path) -> Path:
    return path.with_name(f"cancelled-{path.name}")


def open_file(path: Path) -> int:
    """Open *path* to take a lock on, making it if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


@contextlib.contextmanager
def if_free(path: Path) -> Iterator[bool]:
    """Say whether nobody holds *path*, and let nobody take it meanwhile if so.

    What works for a dead holder, though it has closed the file, is ended.
    """
    descriptor = open_file(path)
    try:
        is_free = try_lock(descriptor, fcntl.LOCK_EX)
        if is_free:
            _end_dead(read_owner(path))
        yield is_free
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
    """Return who wrote itself into *path* last, or None: nobody, or it is writing just now."""
    try:
        found = json.loads(path.read_text())
        log, progress = found.pop("log"), found.pop("progress")
        return Owner(
            **found,
            log=Path(log) if log else None,
            progress=Progress(**progress) if progress else None,
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _document(owner: Owner) -> dict[str, object]:
    return asdict(owner) | {"log": str(owner.log) if owner.log else None}


def _end_dead(owner: Owner | None) -> None:
    if owner and owner.token and not owner.is_alive():
        process.end_work(owner.token)


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
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return (*_filesystem(descriptor), os.fstat(descriptor).st_ino)
    finally:
        os.close(descriptor)


def _filesystem(descriptor: int) -> tuple[int, int]:
    """Return (major, minor) of what is mounted where a file is.

    On btrfs a stat names the subvolume instead, and /proc/locks does not.
    """
    about = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
    mount = next(line.split()[1] for line in about.splitlines() if line.startswith("mnt_id:"))
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        number, _, device, _ = line.split(" ", 3)
        if number == mount:
            major, minor = device.split(":")
            return int(major), int(minor)
    # It is mounted no more, or elsewhere.
    status = os.fstat(descriptor)
    return os.major(status.st_dev), os.minor(status.st_dev)
