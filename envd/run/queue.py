"""The requests for one model: in order, handed to whoever of its workers has room."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque

from envd.errors import EnvdError, QueueFullError, RequestKillsWorkersError
from envd.model import Model
from envd.run.breaker import Suspects
from envd.run.channel import Buffer
from envd.run.crew import Crew
from envd.run.envd_worker.protocol import PREDICT, STREAM
from envd.run.serving import Serving
from envd.run.stream import Stream, Window
from envd.run.ticket import Answered, Ticket
from envd.run.workshop import Worker, Workshop
from envd.store import Environment

log = logging.getLogger(__name__)


class Queue:
    """The requests for one model, and the `crew` that answers them."""

    def __init__(
        self, workshop: Workshop, model: Model, environment: Environment, serving: Serving
    ) -> None:
        """Begin with no request and no worker."""
        self.crew = Crew(workshop, model, environment, serving, self)
        self._model = str(model.path)
        self._serving = serving
        self._grace = workshop.settings.workers.stop_grace
        self._clock = workshop.clock
        self._observer = workshop.observer
        self._window = _window(serving)
        self._waiting: deque[Ticket] = deque()
        self._victims: list[Ticket] = []
        self._suspects = Suspects(workshop.clock)
        self._is_closed = False

    @property
    def are_waiting(self) -> bool:
        """Whether a request waits for a worker."""
        return bool(self._waiting)

    @property
    def waiting(self) -> int:
        """How many requests wait for a worker."""
        return len(self._waiting)

    @property
    def is_over(self) -> bool:
        """Whether there is nothing here any more, and no failure to remember."""
        return not self._waiting and self.crew.is_over

    async def ask(self, head: bytes, payload: Buffer) -> Answered:
        """Return the answer to one request.

        Raises:
            QueueFullError: too many wait already.
            RequestKillsWorkersError: workers are known to die of it.
            EnvdError: no worker can be had, it died, or it refused.
        """
        ticket = self._ticket(head, payload)
        self._wait(ticket)
        self._dispatch()
        try:
            return await ticket.answer
        except asyncio.CancelledError:
            self._leave(ticket)
            raise
        finally:
            # It has the error, which has what was here when it was raised.
            del ticket

    def stream(self, head: bytes, payload: Buffer, limit: int) -> Stream:
        """Return the answer to one request as it will come, in items of at most *limit* bytes.

        A worker with nothing else to do sends it, and does nothing else meanwhile: nobody
        waits behind a stream while another worker is free, nor a stream behind anybody.

        Raises:
            EnvdError: as `ask`, of what is known at once; the stream raises the rest.
        """
        ticket = self._ticket(head, payload)
        ticket.is_alone, ticket.window = True, Window(limit)
        self._wait(ticket)
        self._dispatch()
        return Stream(ticket, ticket.window, self._leave)

    def _ticket(self, head: bytes, payload: Buffer) -> Ticket:
        self._admit(head, payload)
        # Whoever asks wants workers, though they were retired.
        self.crew.is_current = True
        loop = asyncio.get_running_loop()
        return Ticket(head, payload, self._clock(), loop.create_future(), self)

    def go_on(self) -> None:
        """Hand out what waits, and let those go who are to."""
        self.crew.stop_leaving()
        self._dispatch()

    def fail(self, error: BaseException) -> None:
        """Tell everybody who waits for a worker that there is none."""
        while self._waiting:
            ticket = self._waiting.popleft()
            self._observer.queued(-1)
            if not ticket.answer.done():
                ticket.answer.set_exception(error)

    async def close(self) -> None:
        """Stop every worker; who waits hears that it was cancelled."""
        self._is_closed = True
        while self._waiting:
            self._waiting.popleft().answer.cancel()
            self._observer.queued(-1)
        await self.crew.close()

    def on_answer(self, ticket: Ticket) -> None:
        """Go on: a worker has answered *ticket*, whose caller may have left."""
        if not ticket.answer.done():
            self._suspects.clear(ticket.head, ticket.payload)
        if ticket.worker:
            self.crew.answered(ticket.worker)
            # Not within: whoever waits for this answer comes first.
            asyncio.get_running_loop().call_soon(self.go_on)

    def on_loss(self, ticket: Ticket, *, is_begun: bool) -> None:
        """Ask elsewhere what was not begun; what was cost its worker its life."""
        if is_begun:
            self._victims.append(ticket)
        elif ticket.answer.done():
            return
        elif self._is_closed:
            ticket.answer.cancel()
        else:
            self._again(ticket)

    def on_end(self, worker: Worker) -> None:
        """Mourn *worker*, whose socket has ended."""
        victims, self._victims = self._victims, []
        if len(victims) > 1 and not self._is_closed:
            # A batch: they do not depend on each other, and only one of them is to blame.
            for ticket in victims:
                ticket.is_alone = True
                if not ticket.answer.done():
                    self._again(ticket)
            victims = []
        if victims or not worker.is_stopping:
            self.crew.spawn(self._mourn(worker, victims))

    async def _mourn(self, worker: Worker, victims: list[Ticket]) -> None:
        """Tell how *worker* ended to whoever it had begun with, and go on without it."""
        error: Exception
        try:
            error = await self.crew.death(worker, is_begun=bool(victims))
        except Exception as failure:
            # Whatever it is, nobody may wait for ever, and somebody has to know.
            log.exception("how a worker ended cannot be told")
            error = failure
        is_to_blame = worker.ended_by_itself
        for ticket in victims:
            is_deadly = is_to_blame and self._suspects.accuse(ticket.head, ticket.payload)
            if not ticket.answer.done():
                ticket.answer.set_exception(self._deadly() if is_deadly else error)
        self._dispatch()

    def _admit(self, head: bytes, payload: Buffer) -> None:
        if len(self._waiting) >= self._serving.queue:
            message = f"{len(self._waiting)} requests wait for `{self._model}` already; ask again"
            raise QueueFullError(message, model=self._model, waiting=len(self._waiting))
        if self._suspects.are_deadly(head, payload):
            raise self._deadly()
        if error := self.crew.refusal():
            raise error

    def _wait(self, ticket: Ticket) -> None:
        self._waiting.append(ticket)
        self._observer.queued(1)

    def _again(self, ticket: Ticket) -> None:
        """Put *ticket* among those who wait, where it was by its age."""
        ticket.worker = None
        later = next(
            (place for place, one in enumerate(self._waiting) if one.asked > ticket.asked),
            len(self._waiting),
        )
        self._waiting.insert(later, ticket)
        self._observer.queued(1)
        asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        """Hand what waits to workers that have room, and have more of them if that is due."""
        while self._waiting:
            ticket = self._waiting[0]
            if not ticket.answer.done():
                worker = self.crew.free(1 if ticket.is_alone else self._window)
                if worker is None:
                    break
                self._hand(ticket, worker)
            self._waiting.popleft()
            self._observer.queued(-1)
        if not self._is_closed:
            self.crew.grow()

    def _hand(self, ticket: Ticket, worker: Worker) -> None:
        ticket.worker = worker
        worker.is_reserved = ticket.is_alone
        ticket.sent = worker.last_used = self._clock()
        kind = STREAM if ticket.window else PREDICT
        ticket.number = worker.channel.send(kind, ticket.head, ticket.payload, ticket)

    def _leave(self, ticket: Ticket) -> None:
        """Let nobody work for a caller that has left."""
        if ticket.worker is None:
            with contextlib.suppress(ValueError):
                self._waiting.remove(ticket)
                self._observer.queued(-1)
            return
        ticket.worker.channel.abandon(ticket.number)
        self._end_if_stuck(ticket.worker)

    def _end_if_stuck(self, worker: Worker) -> None:
        """Kill a worker that goes on for `workers.stop_grace` with what nobody waits for.

        One that answers others meanwhile is only busy, and is looked at again.
        """
        if worker.is_watched:
            return
        worker.is_watched = True
        loop, grace = asyncio.get_running_loop(), self._grace

        def look() -> None:
            if worker.channel.is_stuck(grace):
                worker.was_stuck = True
                worker.process.kill()
            elif worker.channel.has_abandoned:
                loop.call_later(grace, look)
            else:
                worker.is_watched = False

        loop.call_later(grace, look)

    def _deadly(self) -> EnvdError:
        message = f"workers of `{self._model}` die of this very request; mend it, or the model"
        return RequestKillsWorkersError(message, model=self._model)


def _window(serving: Serving) -> int:
    """Return how many requests one worker is handed before it has answered."""
    if serving.batch:
        return max(serving.concurrency, serving.max_batch)
    # With several workers, what waits at one could be done by another.
    return serving.concurrency if serving.workers == 1 else 1
