"""A pool on real processes, models for it, and somebody who watches."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from envd.errors import EnvdError
from envd.model import Model, mlmodel
from envd.run.observer import Observer
from envd.run.pool import Pool, Prediction, Request
from envd.run.processes import Processes
from envd.sandbox.tiers import OPEN, Sandbox
from envd.store import Environment
from tests.house import House
from tests.tiny import Tiny


@dataclass
class Watch(Observer):
    """Remembers what it hears."""

    started: list[str] = field(default_factory=list)
    died: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    depth: int = 0

    def worker_started(self, kind: str) -> None:
        self.started.append(kind)

    def worker_died(self, cause: str) -> None:
        self.died.append(cause)

    def evicted(self, why: str) -> None:
        self.gone.append(why)

    def queued(self, delta: int) -> None:
        self.depth += delta


@dataclass
class Stage:
    """A pool, models for it and their environment."""

    house: House
    tiny: Tiny
    watch: Watch = field(default_factory=Watch)
    sandbox: Sandbox = OPEN

    def model(self, name: str, body: str) -> tuple[Model, Environment]:
        """Write a model and build its environment."""
        path = self.tiny.model(self.house.folder / name, body=body)
        model = mlmodel.read(path)
        found = self.house.environments
        return model, found.ready(found.ask(model)).environment

    def run(self, play: Callable[[Pool], Awaitable[None]], limit_s: float = 60) -> None:
        """Let *play* use a pool."""
        asyncio.run(self._run(play, limit_s))
        assert self.watch.depth == 0

    async def _run(self, play: Callable[[Pool], Awaitable[None]], limit_s: float) -> None:
        async with self.pool() as pool:
            await asyncio.wait_for(play(pool), limit_s)

    @contextlib.asynccontextmanager
    async def pool(self) -> AsyncIterator[Pool]:
        processes = Processes.create()
        try:
            processes.attach()
            pool = Pool(
                *(self.house.settings, self.house.environments.store, processes),
                observer=self.watch,
                sandbox=self.sandbox,
            )
            try:
                yield pool
            finally:
                await pool.close()
        finally:
            processes.close()


def request(value: object) -> Request:
    return Request(json.dumps({"inputs": value}).encode(), "application/json", None)


def answer(found: Prediction) -> object:
    return json.loads(found.payload)["predictions"]


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def outcome(going_on: Awaitable[Prediction]) -> object:
    try:
        return answer(await going_on)
    except EnvdError as error:
        return error
