"""Asks a process of its own, the broker, for the mounts of models: a daemon may not mount."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
from pathlib import Path

from envd.errors import ConfinementFailedError, ModelMovedError
from envd.model import Model, files
from envd.run.processes import Process, Processes
from envd.sandbox.tiers import PROGRAM, Sandbox

_PATIENCE_S = 10.0


class Mounts:
    """The mounts of models, each a descriptor that is given to one worker."""

    def __init__(self, processes: Processes, sandbox: Sandbox, log: Path) -> None:
        """Start the broker when it is first asked; what it says goes to *log*."""
        self._processes = processes
        self._user = sandbox.user
        self._log = log
        self._connection: socket.socket | None = None
        self._broker: Process | None = None
        self._asking = asyncio.Lock()

    async def of(self, model: Model) -> int:
        """Return the descriptor of a read-only mount of *model*, attached nowhere.

        Raises:
            ModelMovedError: its path leads to another directory by now.
            ConfinementFailedError: it cannot be had.
        """
        async with self._asking:
            try:
                connection = await self._connected()
                mount = await asyncio.to_thread(_ask, connection, model.path)
            except OSError as error:
                self.close()
                message = f"the model `{model.path}` cannot be mounted for its worker: {error}"
                raise ConfinementFailedError(message, model=model.path) from error
        return _checked(mount, model)

    async def _connected(self) -> socket.socket:
        if self._connection and self._broker and not self._broker.exited.done():
            return self._connection
        self.close()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(_PATIENCE_S)
        argv = [sys.executable, "-I", "-S", "-B", PROGRAM, "broker", "{0}", json.dumps(self._user)]
        with theirs, contextlib.ExitStack() as undo:
            undo.callback(ours.close)
            self._broker = await self._processes.start(
                argv, env={}, cwd=Path("/"), log=self._log, given=[theirs.fileno()]
            )
            undo.pop_all()
        self._connection = ours
        return ours

    def close(self) -> None:
        """Let the broker end, as it does when nobody can ask it any more."""
        if self._connection:
            self._connection.close()
            self._connection = None


def opened(model: Model) -> int:
    """Return a descriptor of the directory of *model*, to be named and not to be read by.

    Raises:
        ModelMovedError: its path leads to another directory by now, or nowhere.
    """
    try:
        return _checked(os.open(model.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), model)
    except OSError as error:
        files.raise_shortage(error)
        raise _moved(model) from error


def _checked(descriptor: int, model: Model) -> int:
    found = os.fstat(descriptor)
    if (found.st_dev, found.st_ino) == model.directory:
        return descriptor
    os.close(descriptor)
    raise _moved(model)


def _moved(model: Model) -> ModelMovedError:
    message = f"the model `{model.path}` was replaced after it was read; ask again"
    return ModelMovedError(message, model=model.path)


def _ask(connection: socket.socket, path: Path) -> int:
    connection.send(os.fsencode(path))
    said, descriptors, _, _ = socket.recv_fds(connection, 1 << 12, 1)
    if not descriptors:
        raise OSError(said.decode() or "who mounts it has ended")
    os.set_inheritable(descriptors[0], False)  # noqa: FBT003
    return descriptors[0]
