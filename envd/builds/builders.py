"""Gives tasks to builders, each a process of its own, and sees them through to their end."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import sys
from typing import Any

from envd import config, failpoint, process
from envd.config import Settings
from envd.errors import BuildInterruptedError, from_document
from envd.events import Event, Line, Locked, OnEvent, Progress, Stage, ignore
from envd.lock.uv import PASSED
from envd.model import location
from envd.run.processes import Process, Processes
from envd.sandbox import tiers

log = logging.getLogger(__name__)

# An answer is one line: of 10,000 environments, some megabytes.
_MAX_LINE_BYTES = 1 << 28
_GRACE_S = 2.0


class Builders:
    """The builders of one daemon."""

    def __init__(self, settings: Settings, processes: Processes) -> None:
        """Start none yet."""
        self._settings = settings
        self._processes = processes
        self._asked: dict[tuple[str, str], asyncio.Task[Any]] = {}
        self._ending: set[asyncio.Task[None]] = set()

    async def once(self, task: str, about: object, name: str) -> Any:
        """Give a task to a builder, or join whoever has given the one called *name* already."""
        key = (task, name)
        asked = self._asked.get(key)
        if asked is None:
            asked = asyncio.create_task(self.run(task, about, ignore))
            self._asked[key] = asked
            asked.add_done_callback(lambda _: self._asked.pop(key, None))
        return await asyncio.shield(asked)

    async def run(
        self, task: str, about: object, on_event: OnEvent, token: str | None = None
    ) -> Any:
        """Give a task of `envd.builds.builder` to a builder and return its answer.

        Whoever leaves ends it, and all that it started; it is a part of the work *token*.

        Raises:
            EnvdError: the task failed.
        """
        ours, theirs = socket.socketpair()
        token = process.new_token(token)
        with theirs:
            builder = await self._start(theirs, token)
        writer = None
        try:
            reader, writer = await asyncio.open_unix_connection(sock=ours, limit=_MAX_LINE_BYTES)
            request = {
                "settings": config.document(self._settings),
                "sandbox": tiers.of(self._settings).document(),
                "task": task,
                "about": about,
            }
            writer.write(json.dumps(request).encode() + b"\n")
            answer = await _followed(reader, on_event)
        except BaseException:
            await self._end(builder, token)
            raise
        finally:
            if writer is None:
                ours.close()
            else:
                writer.close()
        # It is ending by itself, which nobody need wait for.
        ending = asyncio.create_task(self._end(builder, token))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
        return answer

    async def _start(self, connection: socket.socket, token: str) -> Process:
        logs = self._settings.root / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        return await self._processes.start(
            [sys.executable, "-I", "-m", "envd.builds.builder", "{0}"],
            env=config.passed((*PASSED, "PYENV_ROOT", *failpoint.VARIABLES))
            | location.inherited()
            | {process.WORK: token},
            cwd=self._settings.root,
            log=logs / "builders.log",
            given=[connection.fileno()],
        )

    async def _end(self, builder: Process, token: str) -> None:
        """End a builder, which clears away what it made, and all that it started."""
        builder.kill(signal.SIGTERM)
        await asyncio.wait([builder.exited], timeout=_GRACE_S)
        builder.kill()
        await asyncio.wait([builder.exited], timeout=_GRACE_S)
        try:
            # What has left its process group is found by its token.
            await asyncio.to_thread(process.end_work, token)
        except OSError as error:
            # Whoever takes over what the builder held ends them first.
            log.warning("what a builder started may still run: %s", error)


async def _followed(reader: asyncio.StreamReader, on_event: OnEvent) -> Any:
    while line := await reader.readline():
        message: dict[str, Any] = json.loads(line)
        if "error" in message:
            raise from_document(message["error"])
        if "done" in message:
            return message["done"]
        on_event(_event(message))
    message_lost = "the process that built the environment was killed; ask again"
    raise BuildInterruptedError(message_lost)


def _event(message: dict[str, Any]) -> Event:
    if "stage" in message:
        return Stage(message["stage"], message["message"])
    if "progress" in message:
        return Progress(**message["progress"])
    if "env_id" in message:
        return Locked(message["env_id"])
    return Line(message["line"])
