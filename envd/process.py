"""Finds and ends the processes that do one piece of work, wherever they went.

Every child has ENVD_WORK in its environment, and hands it down to all that it starts. So
they are found though a process leaves its group and its session when it likes; the
variables it began with it leaves only by wiping them.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import secrets
import select
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

# The variable that says what work a process does.
WORK = "ENVD_WORK"
# A process that a filesystem keeps from dying is waited for no longer.
_PATIENCE_S = 10
_PID_NAMESPACE = Path("/proc/self/ns/pid")


def new_token(within: str | None = None, environ: Mapping[str, str] = os.environ) -> str:
    """Return a name for new work: a part of *within*, else of what this process is a part of."""
    above = within or environ.get(WORK)
    return f"{above}.{secrets.token_hex(8)}" if above else secrets.token_hex(8)


def start_time(pid: int) -> str | None:
    """Return when *pid* started, in clock ticks since boot: with it a pid is unique.

    None if it has ended.
    """
    found = _stat(pid)
    return found.started if found else None


def namespace() -> str:
    """Return what tells whether two processes mean the same by a pid: boot and namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}.{_PID_NAMESPACE.stat().st_ino}"


def stamp() -> str:
    """Return what to call a file of this process, so that others see whether it lives."""
    return f"{_PID_NAMESPACE.stat().st_ino}.{os.getpid()}"


def is_stamp_of_the_dead(name: str) -> bool:
    """Whether *name* begins with the `stamp` of a process that is gone, as seen from here."""
    inode, pid, *_ = [*name.split("."), "", ""]
    is_ours = inode == str(_PID_NAMESPACE.stat().st_ino)
    return is_ours and not Path("/proc", pid or "none").exists()


@dataclass(frozen=True, slots=True)
class _Process:
    pid: int
    parent: int
    started: str


def end_work(token: str, session: int | None = None) -> None:
    """Kill every process of the work called *token* and of its parts, until none is left.

    And those of *session*, where that is given. This process and those that it descends
    from are spared.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while found := _members(token, session):
        with contextlib.ExitStack() as stack:
            for descriptor in [one for process in found if (one := _kill(process)) is not None]:
                stack.callback(os.close, descriptor)
                # A process that dies gives its variables back before its descriptors.
                ended = select.poll()
                ended.register(descriptor, select.POLLIN)
                ended.poll(max(0.0, deadline - time.monotonic()) * 1000)
        if time.monotonic() > deadline:
            log.warning("processes cannot be killed", extra={"pids": [one.pid for one in found]})
            return


def _kill(process: _Process) -> int | None:
    """Kill *process* and return the descriptor that tells when it has ended."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    # The pid may have been given to a stranger since.
    if start_time(process.pid) == process.started:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            return descriptor
    os.close(descriptor)
    return None


def moved(token: str, session: int) -> tuple[int, int]:
    """Return how many bytes the processes of *token* and *session* have read and written."""
    read = written = 0
    for process in _members(token, session):
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{process.pid}/io").read_text()
            counts = dict(line.split(": ") for line in text.splitlines())
            read, written = read + int(counts["rchar"]), written + int(counts["wchar"])
    return read, written


def _members(token: str, session: int | None) -> list[_Process]:
    """Return the processes of *token* and of *session*, and their descendants."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208
    spared = set(_ancestry())
    found = {
        pid: one
        for pid in pids
        if pid not in spared
        and (_is_in(pid, session) or _is_of(pid, token))
        and (one := _stat(pid))
    }
    # A process may have wiped its variables.
    alive = [one for pid in pids if found and pid not in spared and (one := _stat(pid))]
    while more := {one.pid: one for one in alive if one.parent in found and one.pid not in found}:
        found |= more
    return list(found.values())


def _ancestry() -> Iterator[int]:
    pid = os.getpid()
    yield pid
    while found := _stat(pid):
        pid = found.parent
        yield pid


def _is_in(pid: int, session: int | None) -> bool:
    try:
        return os.getsid(pid) == session
    except OSError:
        return False


def _is_of(pid: int, token: str) -> bool:
    try:
        with io.FileIO(f"/proc/{pid}/environ") as file:
            variables = b"\0" + file.readall() + b"\0"
    except OSError:
        return False
    begin = f"\0{WORK}={token}".encode()
    return begin + b"\0" in variables or begin + b"." in variables


def _stat(pid: int) -> _Process | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    state, *rest = text.rpartition(")")[2].split()
    # Its first thread may have ended, and others not yet: then its files are still open.
    if state in {"Z", "X"} and int(rest[16]) <= 1:
        return None
    return _Process(pid, int(rest[0]), rest[18])
