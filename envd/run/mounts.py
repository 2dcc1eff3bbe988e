"""Asks a process of its own, the broker, for the mounts of models: a daemon may not mount."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
from pathlib import Path

from envd.errors import ConfinementFailedError
from envd.run.processes import Process, Processes
from envd.sandbox import PROGRAM, Sandbox

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

    async def of(self, path: Path) -> int:
        """Return the descriptor of a read-only mount of *path*, attached nowhere.

        Raises:
            ConfinementFailedError: it cannot be had.
        """
        async with self._asking:
            try:
                connection = await self._connected()
                return await asyncio.to_thread(_ask, connection, path)
            except OSError as error:
                self.close()
                message = f"the model `{path}` cannot be mounted for its worker: {error}"
                raise ConfinementFailedError(message, model=path) from error

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


def _ask(connection: socket.socket, path: Path) -> int:
    connection.send(os.fsencode(path))
    said, descriptors, _, _ = socket.recv_fds(connection, 1 << 12, 1)
    if not descriptors:
        raise OSError(said.decode() or "who mounts it has ended")
    os.set_inheritable(descriptors[0], False)  # noqa: FBT003
    return descriptors[0]
