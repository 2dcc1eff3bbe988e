"""Runs a child to its end: lines as they come, a deadline, no child left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_TAIL_LINES = 200
_PID_NAMESPACE = Path("/proc/self/ns/pid")


@dataclass(frozen=True, slots=True)
class Finished:
    """A child that has ended: its exit status and the last lines it wrote."""

    status: int
    tail: tuple[str, ...]
    timed_out: bool


def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path,
    timeout_s: float,
    on_line: Callable[[str], None] = lambda _: None,
    on_start: Callable[[int], None] = lambda _: None,
    pass_fds: Collection[int] = (),
) -> Finished:
    """Run *argv* in a session of its own and hand each line of its output to *on_line*.

    *on_start* gets the id of the child's process group. The group is killed when the
    time is over and when this function is left by an exception.
    """
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    with (
        subprocess.Popen(
            argv,
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            pass_fds=tuple(pass_fds),
        ) as child,
        _ended_by(child.pid, timeout_s) as is_late,
    ):
        on_start(child.pid)
        for line in child.stdout or ():
            tail.append(line.rstrip("\n"))
            on_line(tail[-1])
        status = child.wait()
    return Finished(status, tuple(tail), is_late())


@contextlib.contextmanager
def _ended_by(group: int, timeout_s: float) -> Iterator[Callable[[], bool]]:
    """Kill *group* when the time is over, which the value yielded tells, or on an exception."""
    late = threading.Event()

    def end() -> None:
        late.set()
        kill_group(group)

    timer = threading.Timer(timeout_s, end)
    timer.daemon = True
    timer.start()
    try:
        yield late.is_set
    except BaseException:
        kill_group(group)
        raise
    finally:
        timer.cancel()


def kill_group(group: int) -> None:
    """Kill every process of *group*, if there is one left."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def stamp() -> str:
    """Return what to call a file of this process, so that others see whether it lives."""
    return f"{_PID_NAMESPACE.stat().st_ino}.{os.getpid()}"


def is_stamp_of_the_dead(name: str) -> bool:
    """Whether *name* begins with the `stamp` of a process that is gone, as seen from here."""
    namespace, pid, *_ = [*name.split("."), "", ""]
    is_ours = namespace == str(_PID_NAMESPACE.stat().st_ino)
    return is_ours and not Path("/proc", pid or "none").exists()
