"""Asks a starter for processes, and tells when they end.

There are two starters that speak alike: the spawner, for any program, and a template, for
workers that are forked from it.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envd.errors import OUT_OF, EnvdError, InternalError, LimitReachedError
from envd.run import spawner

_MAX_MESSAGE = 1 << 18
_GONE = "what starts processes is gone"
_TOO_MUCH = (
    "its environment variables are more than can be handed over; shorten `env` and `env_file` of "
    "the model"
)


@dataclass(eq=False, slots=True)
class Process:
    """A process of a starter. `exited` gets its exit status, negative for a signal.

    It `ran_out` of memory where it was ended for taking more than it may.
    """

    number: int
    owner: Starter
    started: asyncio.Future[int]
    exited: asyncio.Future[int]
    ran_out: bool = False

    @property
    def pid(self) -> int:
        """Its pid, as its starter sees it."""
        return self.started.result()

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to its process group, if it still runs."""
        if not self.exited.done():
            self.owner.signal(self, int(number))


class Starter:
    """The processes at the other end of a SOCK_SEQPACKET socket."""

    def __init__(self, control: socket.socket) -> None:
        """Speak over *control*; `attach` it to the loop that uses it."""
        self._control = control
        self._alive: dict[int, Process] = {}
        self._pings: dict[int, asyncio.Future[None]] = {}
        self._count = 0
        self._room: asyncio.Future[None] | None = None
        self._late: set[asyncio.Task[None]] = set()

    @property
    def has_processes(self) -> bool:
        """Whether any of its processes runs."""
        return bool(self._alive)

    def attach(self) -> asyncio.Future[None]:
        """Listen to the starter in the running loop; the future ends if the starter does."""
        loop = asyncio.get_running_loop()
        gone: asyncio.Future[None] = loop.create_future()
        loop.add_reader(self._control.fileno(), self._receive, gone)
        return gone

    async def ask(
        self, request: Mapping[str, object], given: Sequence[int], kept: Sequence[int] = ()
    ) -> Process:
        """Have the process started that *request* describes, with these descriptors.

        Raises:
            LimitReachedError: there may be no more processes, descriptors or memory.
            InternalError: it could not be started for another reason.
        """
        loop = asyncio.get_running_loop()
        self._count += 1
        process = Process(self._count, self, loop.create_future(), loop.create_future())
        self._alive[process.number] = process
        message = {"start": process.number, "given": len(given), **request}
        try:
            await self._send(message, [*given, *kept])
        except OSError as error:
            self._alive.pop(process.number, None)
            raise _not_started(_GONE, error.errno) from error
        except asyncio.CancelledError:
            self._alive.pop(process.number, None)
            raise
        try:
            await asyncio.shield(process.started)
        except asyncio.CancelledError:
            # Whoever wanted it has gone.
            process.kill()
            raise
        return process

    def signal(self, process: Process, number: int) -> None:
        """Have the process group of *process* get a signal."""
        message = {"kill": process.number, "signal": number}
        try:
            self._control.send(json.dumps(message).encode(), socket.MSG_DONTWAIT)
        except BlockingIOError:
            task = asyncio.ensure_future(self._send_late(message))
            self._late.add(task)
            task.add_done_callback(self._late.discard)
        except OSError:
            # It is gone, and its processes with it.
            return

    async def answers(self) -> None:
        """Return once it has answered that it is there; never, if it does not or is gone."""
        self._count += 1
        number, answered = self._count, asyncio.get_running_loop().create_future()
        self._pings[number] = answered
        try:
            with contextlib.suppress(OSError):
                await self._send({"ping": number})
            await answered
        finally:
            del self._pings[number]

    async def _send_late(self, message: Mapping[str, object]) -> None:
        with contextlib.suppress(OSError):
            await self._send(message)

    async def _send(self, message: Mapping[str, object], given: Sequence[int] = ()) -> None:
        """Send *message* once there is room for it: the starter may be slow.

        Raises:
            OSError: the starter is gone.
        """
        text = json.dumps(message).encode()
        # Not `send_fds`: that of several versions of Python leaves out the flags.
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", given))]
        while True:
            try:
                self._control.sendmsg([text], rights if given else [], socket.MSG_DONTWAIT)
            except BlockingIOError:
                await asyncio.shield(self._has_room())
            else:
                return

    def _has_room(self) -> asyncio.Future[None]:
        """Return a future that ends when there may be room for a message."""
        if self._room is None:
            loop = asyncio.get_running_loop()
            self._room = loop.create_future()
            loop.add_writer(self._control.fileno(), self._tell_room)
        return self._room

    def _tell_room(self) -> None:
        room, self._room = self._room, None
        if room is not None:
            asyncio.get_running_loop().remove_writer(self._control.fileno())
            _settle(room, None)

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
        self._lose(gone)

    def _lose(self, gone: asyncio.Future[None]) -> None:
        asyncio.get_running_loop().remove_reader(self._control.fileno())
        self._tell_room()
        alive, self._alive = self._alive, {}
        for process in alive.values():
            _fail(process.started, _not_started(_GONE))
            _settle(process.exited, -signal.SIGKILL)
        _settle(gone, None)

    def _dispatch(self, message: dict[str, Any]) -> None:
        if "started" in message:
            _settle(self._alive[message["started"]].started, message["pid"])
        elif "failed" in message:
            process = self._alive.pop(message["failed"])
            _fail(process.started, _not_started(message["error"], message["errno"]))
            _settle(process.exited, -signal.SIGKILL)
        elif "pong" in message:
            if answered := self._pings.get(message["pong"]):
                _settle(answered, None)
        else:
            _settle(self._alive.pop(message["exited"]).exited, message["status"])


class Processes(Starter):
    """The processes of one daemon, and the spawner that has them.

    Make it before grpc is imported.
    """

    def __init__(self, control: socket.socket, child: subprocess.Popen[bytes]) -> None:
        """Speak over *control* to the spawner *child*."""
        super().__init__(control)
        self._spawner = child

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
            EnvdError: as `ask`.
        """
        request = {"argv": list(argv), "env": dict(env), "cwd": str(cwd), "log": str(log)}
        return await self.ask(request, given, kept)


def _not_started(why: str, number: int | None = None) -> EnvdError:
    if number == errno.EMSGSIZE:
        return LimitReachedError(f"a process could not be started: {_TOO_MUCH}")
    message = f"a process could not be started: {why}"
    if number in OUT_OF:
        return LimitReachedError(f"{message}; raise the limits of envd")
    return InternalError(message)


def _fail(started: asyncio.Future[int], error: EnvdError) -> None:
    if not started.done():
        started.set_exception(error)
        # Whoever wanted it may have gone.
        started.exception()


def _settle(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)
