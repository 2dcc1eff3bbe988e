"""A request on its way to a worker and back."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from envd.errors import EnvdError, InternalError
from envd.plain import printable
from envd.run.channel import Buffer
from envd.run.workshop import Worker, explained

if TYPE_CHECKING:
    from envd.run.queue import Queue
    from envd.run.stream import Window


@dataclass(eq=False, slots=True)
class Ticket:
    """A request on its way: `answer` gets what became of it.

    One that a worker died with among others is handed out `alone`, as is one whose answer
    comes in parts, which go to the `window`.
    """

    head: bytes
    payload: Buffer
    asked: float
    answer: asyncio.Future[Answered]
    queue: Queue
    sent: float = 0.0
    number: int = 0
    worker: Worker | None = None
    is_alone: bool = False
    window: Window | None = None

    def part(self, payload: Buffer, *, ends: bool) -> None:
        """Take a part of the answer.

        Raises:
            ValueError: no worker sends it.
        """
        if self.window is None:
            message = "the answer has no parts"
            raise ValueError(message)
        if not self.answer.done():
            self.window.put(payload, ends=ends)

    def answered(self, head: dict[str, Any], payload: Buffer) -> None:
        """Take the answer.

        Raises:
            Exception: no worker answers so.
        """
        seconds = float(head["seconds"])
        if not 0 <= seconds < math.inf:
            raise ValueError(seconds)
        notes = tuple({"code": printable(str(one["code"])),
                       "message": printable(str(one["message"]))}
                      for one in head["notes"])  # fmt: skip
        found = Answered(self.worker, self.asked, self.sent, seconds, notes, payload)
        if self.window and not self.answer.done():
            self.window.check_end()
        self.queue.on_answer(self)
        if not self.answer.done():
            self.answer.set_result(found)

    def refused(self, error: EnvdError) -> None:
        """Take the worker's refusal.

        Raises:
            ValueError: no worker refuses so.
        """
        # Who has left is told that it was cancelled, for which there is no error.
        if isinstance(error, InternalError) and not self.answer.done():
            raise ValueError(error.message)
        self.queue.on_answer(self)
        if not self.answer.done() and self.worker:
            self.answer.set_exception(explained(error, self.worker.model))

    def lost(self, *, is_begun: bool) -> None:
        """Hear that the worker has gone."""
        self.queue.on_loss(self, is_begun=is_begun)


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer to a request, the worker that gave it, and when both were asked.

    Not the request: it has this, and what refers to itself stays when nobody wants it.
    """

    worker: Worker | None
    asked: float
    sent: float
    model_seconds: float
    notes: tuple[dict[str, str], ...]
    payload: Buffer
