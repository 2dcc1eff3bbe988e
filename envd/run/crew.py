"""The workers of one model: started as they are needed, replaced, and stopped."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from envd.config import Settings
from envd.errors import (
    EnvdError,
    EnvironmentNotFoundError,
    LimitReachedError,
    WorkerDiedError,
)
from envd.model import Model
from envd.run.breaker import Breaker
from envd.run.observer import Observer
from envd.run.serving import Serving
from envd.run.workshop import Worker, Workshop
from envd.store import Environment

log = logging.getLogger(__name__)
# Between two tries to have more workers, where there is one.
_PAUSE_S = 30.0


class Requests(Protocol):
    """What the workers are for, and hears of them."""

    @property
    def are_waiting(self) -> bool:
        """Whether any waits for a worker."""

    def go_on(self) -> None:
        """Hear that there may be a worker with room."""

    def fail(self, error: BaseException) -> None:
        """Hear that those who wait will get no worker."""

    def on_end(self, worker: Worker) -> None:
        """Hear that a worker's socket has ended, after each of its requests has."""


class Crew:
    """The workers of one model."""

    def __init__(
        self,
        workshop: Workshop,
        model: Model,
        environment: Environment,
        serving: Serving,
        requests: Requests,
    ) -> None:
        """Begin with none."""
        self.model, self.environment, self.serving = model, environment, serving
        self.workers: list[Worker] = []
        self.is_current = True
        self._workshop = workshop
        self._settings: Settings = workshop.settings
        self._observer: Observer = workshop.observer
        self._requests = requests
        self.breaker = Breaker(workshop.clock)
        self._starting: set[asyncio.Task[None]] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._grows_from = 0.0

    @property
    def is_starting(self) -> bool:
        """Whether a worker is being started."""
        return bool(self._starting)

    @property
    def idle(self) -> list[Worker]:
        """Those that can be stopped: they have nothing to do, and nobody waits for one."""
        if self._requests.are_waiting or self._starting:
            return []
        return [one for one in self.workers if not one.channel.under_way]

    @property
    def is_over(self) -> bool:
        """Whether there is nobody any more, and no failure to remember."""
        return not (self.workers or self._starting or self._tasks) and self.breaker.is_forgotten

    def refusal(self) -> EnvdError | None:
        """Return why there will be no worker for now, or None where there may be."""
        if self.workers or self._starting:
            return None
        return self.breaker.open_error()

    async def ready(self) -> None:
        """Have a worker started, if there is none, and wait until one is there.

        Raises:
            EnvdError: none can be had.
        """
        # Whoever wants it loaded wants it again, if it was retired.
        self.is_current = True
        if not all(one.is_leaving for one in self.workers):
            return
        if not self._starting:
            if error := self.breaker.open_error():
                raise error
            self._start()
        # Shielded: others may wait for it as well.
        await asyncio.shield(next(iter(self._starting)))

    def free(self, most: int) -> Worker | None:
        """Return the worker with the least to do, if that is less than *most* requests."""
        free = [one for one in self.workers if one.may_be_asked]
        best = min(free, key=lambda one: one.channel.under_way, default=None)
        return best if best and best.channel.under_way < most else None

    def grow(self) -> None:
        """Start another worker, if there are fewer than there should be."""
        staying = [one for one in self.workers if not one.is_leaving]
        if not staying and not self._starting:
            if not self._requests.are_waiting:
                return
            if error := self.breaker.open_error():
                self._requests.fail(error)
                return
            self._start()
        elif not self._starting and len(staying) < self._wanted() and self._may_grow:
            self._start()

    def answered(self, worker: Worker) -> None:
        """Hear that *worker* has answered."""
        worker.answers += 1
        worker.is_reserved = False
        worker.last_used = self._workshop.clock()
        self.breaker.succeeded()
        limit = self._settings.workers.max_requests
        if limit and worker.answers >= limit:
            self.replace(worker, "recycled")

    def replace(self, worker: Worker, why: str) -> None:
        """Give *worker* nothing more to do, start another one, and stop it then."""
        if worker.is_leaving or worker not in self.workers:
            return
        worker.is_leaving = True
        self._observer.evicted(why)
        self._start()

    def retire(self, why: str) -> None:
        """Stop every worker as soon as it has nothing to do: the model is another one now."""
        self.is_current = False
        for worker in self.workers:
            worker.is_leaving = True
            self._observer.evicted(why)
        self.stop_leaving()

    def stop_leaving(self) -> None:
        """Stop workers that are leaving and have nothing to do."""
        is_replaced = any(not one.is_leaving for one in self.workers)
        for worker in [one for one in self.workers if one.is_leaving]:
            if not worker.channel.under_way and (is_replaced or not self._starting):
                self.workers.remove(worker)
                self.spawn(self._workshop.stop(worker))

    def stop_if(self, chosen: Callable[[Worker], bool]) -> list[asyncio.Task[None]]:
        """Stop the workers with nothing to do that *chosen* says; return what does it."""
        doomed = [one for one in self.idle if chosen(one)]
        self.workers = [one for one in self.workers if one not in doomed]
        return [self.spawn(self._workshop.stop(one)) for one in doomed]

    async def death(self, worker: Worker, *, is_begun: bool) -> WorkerDiedError:
        """Return how *worker* ended, once its process has."""
        # A process that is ending by itself has an exit status to tell.
        loop, grace = asyncio.get_running_loop(), self._settings.workers.stop_grace
        killing = loop.call_later(grace, worker.process.kill)
        when = "with the request under way" if is_begun else "unasked"
        error = await self._workshop.died(worker, when)
        killing.cancel()
        if not worker.was_stuck and not worker.is_stopping:
            self._observer.worker_died(error.metadata["cause"])
            self.breaker.failed(error, worker.born)
        return error

    def spawn(self, going_on: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """See *going_on* through, whoever waits for it."""
        task = asyncio.create_task(going_on)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Stop every worker."""
        for task in self._starting:
            task.cancel()
        await asyncio.gather(*self._starting, return_exceptions=True)
        doomed, self.workers = self.workers, []
        await asyncio.gather(*map(self._workshop.stop, doomed))
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def _may_grow(self) -> bool:
        return self._workshop.clock() >= self._grows_from

    def _wanted(self) -> int:
        if not self.is_current:
            return 1
        if self.serving.workers == "auto":
            return (os.cpu_count() or 1) if self._requests.are_waiting else 1
        return self.serving.workers

    def _start(self) -> None:
        task = asyncio.create_task(self._make())
        self._starting.add(task)
        task.add_done_callback(self._started)

    async def _make(self) -> None:
        worker = await self._workshop.make(self.model, self.environment, self.serving)
        self._observer.worker_started(worker.kind)
        worker.is_leaving = not self.is_current and not self._requests.are_waiting
        self.workers.append(worker)
        # At once, where it has died since it was loaded.
        worker.channel.closed.add_done_callback(lambda _: self._ended(worker))

    def _ended(self, worker: Worker) -> None:
        if worker in self.workers:
            self.workers.remove(worker)
        self._requests.on_end(worker)

    def _started(self, task: asyncio.Task[None]) -> None:
        self._starting.discard(task)
        if task.cancelled():
            return
        if error := task.exception():
            self._not_started(error)
        self._requests.go_on()

    def _not_started(self, error: BaseException) -> None:
        if not isinstance(error, EnvdError):
            log.error("a worker could not be started", exc_info=error)
        elif not isinstance(error, EnvironmentNotFoundError | LimitReachedError):
            self.breaker.failed(error)
        self._grows_from = self._workshop.clock() + _PAUSE_S
        if all(one.is_leaving for one in self.workers):
            self._requests.fail(error)
