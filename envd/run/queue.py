"""The requests for one model, and the workers that answer them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from envd.config import Settings
from envd.errors import (
    EnvdError,
    EnvironmentNotFoundError,
    LimitReachedError,
    QueueFullError,
    RequestKillsWorkersError,
    WorkerDiedError,
)
from envd.run.breaker import Breaker, Suspects
from envd.run.envd_worker.protocol import PREDICT
from envd.run.observer import Observer
from envd.run.serving import Serving
from envd.run.ticket import Answered, Ticket
from envd.run.workshop import Worker

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Queue:
    """The requests for one model, in order, and its workers.

    `make` starts a worker and loads the model, `end` stops one and `died` says how one
    ended. `model` is what errors call the model.
    """

    model: str
    settings: Settings
    serving: Serving
    clock: Callable[[], float]
    observer: Observer
    make: Callable[[], Awaitable[Worker]]
    end: Callable[[Worker], Awaitable[None]]
    died: Callable[[Worker, str], Awaitable[WorkerDiedError]]
    is_current: bool = True
    workers: list[Worker] = field(default_factory=list)
    _waiting: deque[Ticket] = field(default_factory=deque)
    _starting: set[asyncio.Task[None]] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _suspects: Suspects = field(default_factory=Suspects)
    _victims: list[Ticket] = field(default_factory=list)
    _last_error: EnvdError | None = None
    _is_closed: bool = False

    def __post_init__(self) -> None:
        """Begin with no worker."""
        self._breaker = Breaker(self.clock)
        # With several workers, what waits at one could be done by another.
        several = self.serving.workers != 1 and not self.serving.batch
        self._window = 1 if several else self.serving.concurrency

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits and no worker is starting."""
        return not self._waiting and not self._starting

    @property
    def is_over(self) -> bool:
        """Whether there is nothing here any more, and no failure to remember."""
        is_quiet = self.is_empty and not self.workers and not self._tasks
        return is_quiet and self._breaker.is_forgotten

    @property
    def waiting(self) -> int:
        """How many requests wait for a worker."""
        return len(self._waiting)

    @property
    def is_starting(self) -> bool:
        """Whether a worker is being started."""
        return bool(self._starting)

    async def ask(self, head: bytes, payload: bytes) -> Answered:
        """Return the answer to one request.

        Raises:
            QueueFullError: too many wait already.
            RequestKillsWorkersError: workers are known to die of it.
            EnvdError: no worker can be had, it died, or it refused.
        """
        self._admit(head, payload)
        loop = asyncio.get_running_loop()
        ticket = Ticket(head, payload, self.clock(), loop.create_future(), self)
        self._wait(ticket)
        self.dispatch()
        try:
            return await ticket.answer
        except asyncio.CancelledError:
            self._leave(ticket)
            raise

    async def ready(self) -> None:
        """Have a worker started, if there is none, and wait until one is there.

        Raises:
            EnvdError: none can be had.
        """
        while not self.workers:
            if error := self._breaker.open_error():
                raise error
            if not self._starting:
                self._start()
            await asyncio.wait(self._starting, return_when=asyncio.FIRST_COMPLETED)
            if not self.workers and self._last_error:
                raise self._last_error

    def dispatch(self) -> None:
        """Hand what waits to workers that have room, and start more of them if that is due."""
        while self._waiting:
            ticket = self._waiting[0]
            if not ticket.answer.done():
                worker = self._free(ticket)
                if worker is None:
                    break
                self._hand(ticket, worker)
            self._waiting.popleft()
            self.observer.queued(-1)
        self._grow()

    def replace(self, worker: Worker, why: str) -> None:
        """Give *worker* nothing more to do, once another one is there, and stop it."""
        if worker.is_leaving:
            return
        worker.is_leaving = True
        self.observer.evicted(why)
        self._start()

    def retire(self, why: str) -> None:
        """Stop every worker as soon as it has nothing to do: the model is another one now."""
        self.is_current = False
        for worker in self.workers:
            worker.is_leaving = True
            self.observer.evicted(why)
        self._stop_leaving()

    def stop_if(self, chosen: Callable[[Worker], bool]) -> list[Worker]:
        """Take out and return the workers with nothing to do that *chosen* says."""
        if not self.is_empty:
            return []
        doomed = [one for one in self.workers if not one.channel.under_way and chosen(one)]
        self.workers = [one for one in self.workers if one not in doomed]
        return doomed

    async def close(self) -> None:
        """Stop every worker; who waits hears that it was cancelled."""
        self._is_closed = True
        for task in self._starting:
            task.cancel()
        while self._waiting:
            self._waiting.popleft().answer.cancel()
        await asyncio.gather(*self._starting, return_exceptions=True)
        doomed, self.workers = self.workers, []
        await asyncio.gather(*map(self.end, doomed))
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def on_answer(self, ticket: Ticket) -> None:
        """Go on: a worker has answered *ticket*."""
        worker = ticket.worker
        if worker is None:
            return
        worker.answers += 1
        worker.is_reserved = False
        worker.last_used = self.clock()
        self._breaker.succeeded()
        limit = self.settings.workers.max_requests
        if limit and worker.answers >= limit:
            self.replace(worker, "recycled")
        # Not within: whoever waits for this answer comes first.
        asyncio.get_running_loop().call_soon(self._go_on)

    def on_loss(self, ticket: Ticket, *, is_begun: bool) -> None:
        """Ask elsewhere what was not begun; what was cost its worker its life."""
        if ticket.answer.done():
            return
        if is_begun:
            self._victims.append(ticket)
        elif self._is_closed:
            ticket.answer.cancel()
        else:
            ticket.worker = None
            self._wait(ticket, first=True)
            asyncio.get_running_loop().call_soon(self.dispatch)

    def on_end(self, worker: Worker) -> None:
        """Hear that the socket of *worker* has ended, after all its tickets were told."""
        victims, self._victims = self._victims, []
        if worker in self.workers:
            self.workers.remove(worker)
        if len(victims) > 1 and not self._is_closed:
            # A batch: they do not depend on each other, and only one of them is to blame.
            for ticket in reversed(victims):
                ticket.is_alone, ticket.worker = True, None
                self._wait(ticket, first=True)
            victims = []
        self._spawn(self._mourn(worker, victims))

    def _go_on(self) -> None:
        self._stop_leaving()
        self.dispatch()

    def _admit(self, head: bytes, payload: bytes) -> None:
        if len(self._waiting) >= self.serving.queue:
            message = f"{len(self._waiting)} requests wait for `{self.model}` already; ask again"
            raise QueueFullError(message, model=self.model, waiting=len(self._waiting))
        if self._suspects.are_deadly(head, payload):
            raise self._deadly()
        if not self.workers and not self._starting and (error := self._breaker.open_error()):
            raise error

    def _wait(self, ticket: Ticket, *, first: bool = False) -> None:
        (self._waiting.appendleft if first else self._waiting.append)(ticket)
        self.observer.queued(1)

    def _free(self, ticket: Ticket) -> Worker | None:
        """Return the worker with the least to do, if it may have more."""
        free = [one for one in self.workers if one.may_be_asked]
        best = min(free, key=lambda one: one.channel.under_way, default=None)
        if best is None:
            return None
        most = 1 if ticket.is_alone else self._window
        return best if best.channel.under_way < most else None

    def _hand(self, ticket: Ticket, worker: Worker) -> None:
        ticket.worker = worker
        worker.is_reserved = ticket.is_alone
        ticket.sent = worker.last_used = self.clock()
        ticket.number = worker.channel.send(PREDICT, ticket.head, ticket.payload, ticket)

    def _leave(self, ticket: Ticket) -> None:
        """Let nobody work for a caller that has left."""
        worker = ticket.worker
        if worker is None:
            with contextlib.suppress(ValueError):
                self._waiting.remove(ticket)
                self.observer.queued(-1)
            return
        worker.channel.abandon(ticket.number)
        self._end_if_stuck(worker)

    def _end_if_stuck(self, worker: Worker) -> None:
        """Kill a worker that goes on for `workers.stop_grace` with what nobody waits for.

        One that answers others meanwhile is only busy, and is looked at again.
        """
        loop, grace = asyncio.get_running_loop(), self.settings.workers.stop_grace

        def look() -> None:
            if worker.channel.is_stuck(grace):
                worker.was_stuck = True
                worker.process.kill()
            elif worker.channel.has_abandoned:
                loop.call_later(grace, look)

        loop.call_later(grace, look)

    def _grow(self) -> None:
        """Start another worker, if there are fewer than there should be."""
        busy = [one for one in self.workers if not one.is_leaving]
        count = len(busy) + len(self._starting)
        if not count:
            if not self._waiting:
                return
            if error := self._breaker.open_error():
                self._fail_all(error)
                return
            self._start()
        elif busy and count < self._wanted() and not self._starting:
            self._start()

    def _wanted(self) -> int:
        if self.serving.workers == "auto":
            return (os.cpu_count() or 1) if self._waiting else 1
        return self.serving.workers

    def _start(self) -> None:
        task = asyncio.create_task(self._make())
        self._starting.add(task)
        task.add_done_callback(self._started)

    async def _make(self) -> None:
        try:
            worker = await self.make()
        except EnvdError as error:
            self._last_error = error
            if not isinstance(error, EnvironmentNotFoundError | LimitReachedError):
                self._breaker.failed(error)
            if not any(not one.is_leaving for one in self.workers):
                self._fail_all(error)
            return
        self._last_error = None
        self.observer.worker_started(worker.kind)
        if worker.channel.closed.done():
            # It has died since; whoever waits gets another one.
            self._spawn(self._mourn(worker, []))
            return
        self.workers.append(worker)
        worker.is_leaving = not self.is_current and not self._waiting
        worker.channel.closed.add_done_callback(lambda _: self.on_end(worker))

    def _started(self, task: asyncio.Task[None]) -> None:
        self._starting.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("a worker could not be started", exc_info=error)
            self._fail_all(error)
        if not task.cancelled():
            self._go_on()

    def _fail_all(self, error: BaseException) -> None:
        while self._waiting:
            ticket = self._waiting.popleft()
            self.observer.queued(-1)
            if not ticket.answer.done():
                ticket.answer.set_exception(error)

    def _stop_leaving(self) -> None:
        """Stop workers that are leaving and have nothing to do."""
        is_replaced = any(not one.is_leaving for one in self.workers)
        for worker in [one for one in self.workers if one.is_leaving]:
            if not worker.channel.under_way and (is_replaced or not self._starting):
                self.workers.remove(worker)
                self._spawn(self.end(worker))

    async def _mourn(self, worker: Worker, victims: list[Ticket]) -> None:
        """Tell how *worker* ended to whoever it had begun with, and go on without it."""
        if worker.is_stopping and not victims:
            return
        # A process that is ending by itself has an exit status to tell.
        loop, grace = asyncio.get_running_loop(), self.settings.workers.stop_grace
        killing = loop.call_later(grace, worker.process.kill)
        error = await self.died(worker, "with the request under way" if victims else "unasked")
        killing.cancel()
        if not worker.was_stuck and not worker.is_stopping:
            self.observer.worker_died(error.metadata["cause"])
            self._breaker.failed(error)
        for ticket in victims:
            is_deadly = not worker.was_stuck and self._suspects.accuse(ticket.head, ticket.payload)
            if not ticket.answer.done():
                ticket.answer.set_exception(self._deadly() if is_deadly else error)
        self.dispatch()

    def _spawn(self, going_on: Any) -> None:
        task = asyncio.ensure_future(going_on)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _deadly(self) -> RequestKillsWorkersError:
        message = f"workers of `{self.model}` die of this very request; mend it, or the model"
        return RequestKillsWorkersError(message, model=self.model)
