"""Asks the spawner for processes, and tells when they end."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from envd.errors import OUT_OF, EnvdError, InternalError, LimitReachedError
from envd.run import spawner

_MAX_MESSAGE = 1 << 16


@dataclass(eq=False, slots=True)
class Process:
    """A process the spawner started. `exited` gets its exit status, negative for a signal."""

    number: int
    owner: Processes
    started: asyncio.Future[int]
    exited: asyncio.Future[int]

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to its process group, if it still runs."""
        if not self.exited.done():
            self.owner.tell({"kill": self.number, "signal": int(number)})


@dataclass(slots=True)
class Processes:
    """The processes of one daemon, and the spawner that has them.

    Make it before grpc is imported; `attach` it to the loop that uses it.
    """

    _control: socket.socket
    _spawner: subprocess.Popen[bytes]
    _alive: dict[int, Process] = field(default_factory=dict)
    _count: int = 0

    @classmethod
    def create(cls) -> Processes:
        """Start the spawner."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            child = subprocess.Popen(
                [sys.executable, "-I", "-S", spawner.__file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={},
                cwd="/",
            )
        return cls(ours, child)

    def attach(self) -> asyncio.Future[None]:
        """Listen to the spawner in the running loop; the future ends if the spawner does."""
        loop = asyncio.get_running_loop()
        gone: asyncio.Future[None] = loop.create_future()
        loop.add_reader(self._control.fileno(), self._receive, gone)
        return gone

    def close(self) -> None:
        """End the spawner and every process it started, and wait until they are gone."""
        self._control.shutdown(socket.SHUT_RDWR)
        self._spawner.wait()
        self._control.close()

    async def start(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        log: Path,
        given: Sequence[int] = (),
        kept: Sequence[int] = (),
    ) -> Process:
        """Start *argv*, its output appended to *log*.

        It inherits the descriptors *given*, whose numbers replace `{0}`... in *argv*. The
        spawner holds those in *kept* until it has ended. Both may be closed afterwards.

        Raises:
            LimitReachedError: there may be no more processes, descriptors or memory.
            InternalError: it could not be started for another reason.
        """
        loop = asyncio.get_running_loop()
        self._count += 1
        process = Process(self._count, self, loop.create_future(), loop.create_future())
        self._alive[process.number] = process
        request = {
            "start": process.number,
            "argv": list(argv),
            "env": dict(env),
            "cwd": str(cwd),
            "log": str(log),
            "given": len(given),
        }
        socket.send_fds(self._control, [json.dumps(request).encode()], [*given, *kept])
        try:
            await asyncio.shield(process.started)
        except asyncio.CancelledError:
            # Whoever wanted it has gone.
            process.kill()
            raise
        return process

    def tell(self, message: Mapping[str, object]) -> None:
        """Send a message to the spawner."""
        self._control.send(json.dumps(message).encode())

    def _receive(self, gone: asyncio.Future[None]) -> None:
        try:
            text = self._control.recv(_MAX_MESSAGE, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except ConnectionError:
            text = b""
        if text:
            self._dispatch(json.loads(text))
            return
        asyncio.get_running_loop().remove_reader(self._control.fileno())
        for process in self._alive.values():
            _fail(process.started, _not_started("the spawner is gone"))
            _settle(process.exited, -signal.SIGKILL)
        if not gone.done():
            gone.set_result(None)

    def _dispatch(self, message: dict[str, Any]) -> None:
        if "started" in message:
            _settle(self._alive[message["started"]].started, message["pid"])
        elif "failed" in message:
            process = self._alive.pop(message["failed"])
            _fail(process.started, _not_started(message["error"], message["errno"]))
            _settle(process.exited, -signal.SIGKILL)
        else:
            _settle(self._alive.pop(message["exited"]).exited, message["status"])


def _not_started(why: str, number: int | None = None) -> EnvdError:
    message = f"a process could not be started: {why}"
    if number in OUT_OF:
        return LimitReachedError(f"{message}; raise the limits of envd")
    return InternalError(message)


def _fail(started: asyncio.Future[int], error: EnvdError) -> None:
    if not started.done():
        started.set_exception(error)
        # Whoever wanted it may have gone.
        started.exception()


def _settle(future: asyncio.Future[int], value: int) -> None:
    if not future.done():
        future.set_result(value)
