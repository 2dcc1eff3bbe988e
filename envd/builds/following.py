"""One build of a daemon, under way or over, as those see it who follow it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from envd import process
from envd.environments.asked import Asked
from envd.errors import EnvdError, InternalError, ShuttingDownError
from envd.events import Event, Locked, Progress, Stage
from envd.model import Model
from envd.store import Environment

_MAX_EVENTS = 10_000


@dataclass(eq=False, slots=True)
class Build:
    """One build, under way or over. `done` gets the environment or the error.

    It was first asked for by `model`; `cached` says that its lock had an environment already;
    `token` is what its work is called (`envd.process`).
    One that upgrades begins when the plain one `after` which it was asked for is over.
    """

    asked: Asked
    model: Model
    upgrade: bool
    done: asyncio.Future[Environment]
    retry: bool = False
    after: Build | None = None
    env_id: str = ""
    models: set[Path] = field(default_factory=set)
    started: float = field(default_factory=time.monotonic)
    events: list[Event] = field(default_factory=list)
    progress: Progress | None = None
    cached: bool = False
    is_cancelled: bool = False
    is_left: bool = False
    token: str = field(default_factory=process.new_token)
    task: asyncio.Task[None] | None = None
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def seconds(self) -> float:
        """How long it has been under way."""
        return time.monotonic() - self.started

    @property
    def outcome(self) -> str:
        """How it ended: `built`, `cached`, or the reason of its failure."""
        error = self.done.exception()
        if error is None:
            return "cached" if self.cached else "built"
        return error.reason if isinstance(error, EnvdError) else InternalError.reason

    def add(self, event: Event) -> None:
        """Keep *event* and wake whoever follows; of very many lines only the log has the rest."""
        if isinstance(event, Locked):
            self.env_id = event.env_id
        elif isinstance(event, Progress):
            self.progress = event
        elif len(self.events) < _MAX_EVENTS or isinstance(event, Stage):
            self.events.append(event)
        self.wake()

    def wake(self) -> None:
        """Let whoever follows look again."""
        self._news.set()
        self._news = asyncio.Event()

    def cancel(self) -> None:
        """Have it ended. Once only: it takes its time to end what it started."""
        if self.task and not self.is_cancelled:
            self.is_cancelled = True
            self.task.cancel()

    def is_called(self, prefix: str) -> bool:
        """Whether its spec_key or the id of its environment begins with *prefix*."""
        return self.asked.spec.key.startswith(prefix) or self.env_id.startswith(prefix)

    async def follow(self, after: int) -> AsyncIterator[tuple[int, Event]]:
        """Yield (sequence number, event) for every event after *after*, until it is over.

        How far it is comes with the number of the event before.
        """
        told = None
        while True:
            if self.is_left:
                message = "the daemon is stopping; ask again when it is back"
                raise ShuttingDownError(message)
            news = self._news
            for number, event in enumerate(self.events[after:], after + 1):
                yield number, event
                after = number
            if self.progress and self.progress is not told:
                told = self.progress
                yield after, told
            # Whoever comes back may have counted the events of another build.
            if self.done.done() and after >= len(self.events):
                return
            await news.wait()
