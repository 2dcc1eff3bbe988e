"""Runs a child to its end: lines as they come, limits, and no process left behind."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import io
import math
import os
import select
import subprocess
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from envd import process

_TAIL_LINES = 200
_LONGEST_LINE = 1 << 16
_BEAT_S = 0.5

EndedBy = Literal["", "time", "silence"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What ends a child before its own end.

    The `deadline` is of `time.monotonic()`. A child is silent while it writes nothing and
    no process of it reads or writes a byte. `watch` is told about twice a second how many
    bytes they have written; what it raises ends the child, and is raised.
    """

    deadline: float
    silence_s: float = math.inf
    watch: Callable[[int], None] = lambda _: None


@dataclass(frozen=True, slots=True)
class Finished:
    """A child that has ended: its exit status, its last lines, and which limit ended it."""

    status: int
    tail: tuple[str, ...]
    ended_by: EndedBy = ""


def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path,
    limits: Limits,
    on_line: Callable[[str], None] = lambda _: None,
    pass_fds: Collection[int] = (),
    token: str | None = None,
) -> Finished:
    """Run *argv* within *limits* and hand each line of its output to *on_line*.

    It is a part of the work called *token*, where that is given. However this function is
    left, the child and all that it started have ended.
    """
    own = process.new_token(token)
    tail: deque[str] = deque(maxlen=_TAIL_LINES)

    def keep(line: str) -> None:
        tail.append(line)
        on_line(line)

    with _pipe() as (reading, writing):
        output = _Output(reading, keep)
        with _started(
            argv,
            env={**env, process.WORK: own},
            cwd=cwd,
            stdout=writing,
            pass_fds=pass_fds,
            token=own,
        ) as child:
            ended_by = _follow(child.pid, output, _Pulse(own, child.pid, limits))
        output.drain()
    return Finished(child.returncode, tuple(tail), ended_by)


@contextlib.contextmanager
def _pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    try:
        yield reading, writing
    finally:
        os.close(reading)
        os.close(writing)


@contextlib.contextmanager
def _started(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path,
    stdout: int,
    pass_fds: Collection[int],
    token: str,
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a child, which has ended when this is left, as all has that it started."""
    child = None
    try:
        child = subprocess.Popen(
            argv,
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=tuple(pass_fds),
        )
        yield child
    finally:
        # It is not waited for yet: no other session has its number.
        process.end_work(token, None if child is None else child.pid)
        if child is not None:
            child.wait()


class _Output:
    """What a child writes, as lines; one that is too long comes in pieces."""

    def __init__(self, descriptor: int, on_line: Callable[[str], None]) -> None:
        os.set_blocking(descriptor, False)
        self.descriptor = descriptor
        self._on_line = on_line
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._decoder = io.IncrementalNewlineDecoder(decoder, translate=True)
        self._rest = ""

    def read(self) -> None:
        """Take what there is, without waiting for more."""
        with contextlib.suppress(BlockingIOError):
            self._take(self._decoder.decode(os.read(self.descriptor, _LONGEST_LINE)))

    def drain(self) -> None:
        """Take what is left, which is no more than the pipe holds: somebody may still write."""
        held = fcntl.fcntl(self.descriptor, fcntl.F_GETPIPE_SZ)
        for _ in range(0, held, _LONGEST_LINE):
            self.read()
        self._take(self._decoder.decode(b"", final=True))
        if self._rest:
            self._on_line(self._rest)

    def _take(self, text: str) -> None:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            for start in range(0, len(line) or 1, _LONGEST_LINE):
                self._on_line(line[start : start + _LONGEST_LINE])
        while len(self._rest) > _LONGEST_LINE:
            self._on_line(self._rest[:_LONGEST_LINE])
            self._rest = self._rest[_LONGEST_LINE:]


class _Pulse:
    """Whether a child may go on: it has time left, and shows a sign of life now and then."""

    def __init__(self, token: str, session: int, limits: Limits) -> None:
        self._token, self._session, self._limits = token, session, limits
        self._bytes = 0
        self._heard = time.monotonic()
        self._beat = self._heard + _BEAT_S

    def hear(self) -> None:
        """Take note that the child wrote something."""
        self._heard = time.monotonic()

    def due_s(self) -> float:
        """Return how soon `look` is to be called."""
        due = min(self._beat, self._limits.deadline, self._heard + self._limits.silence_s)
        return max(0.0, due - time.monotonic())

    def look(self) -> EndedBy:
        """Return which limit has been reached, if one has."""
        now = time.monotonic()
        if now >= self._limits.deadline:
            return "time"
        is_silent = now - self._heard >= self._limits.silence_s
        if now < self._beat and not is_silent:
            return ""
        self._beat = now + _BEAT_S
        read, written = process.moved(self._token, self._session)
        self._limits.watch(written)
        if read + written != self._bytes:
            self._bytes, self._heard = read + written, now
            return ""
        return "silence" if is_silent else ""


def _follow(pid: int, output: _Output, pulse: _Pulse) -> EndedBy:
    """Take the output of *pid* until it ends or *pulse* says which limit it has reached."""
    ending = os.pidfd_open(pid)
    try:
        events = select.poll()
        for descriptor in (output.descriptor, ending):
            events.register(descriptor, select.POLLIN)
        while True:
            # Rounded up, or the last millisecond is spent asking.
            ready = {one for one, _ in events.poll(math.ceil(pulse.due_s() * 1000))}
            if output.descriptor in ready:
                output.read()
                pulse.hear()
            if ending in ready:
                return ""
            if limit := pulse.look():
                return limit
    finally:
        os.close(ending)
