"""The answer to one request in parts, from the worker that sends it to whoever asked."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from envd.errors import EnvdError
from envd.run.channel import Buffer
from envd.run.envd_worker.protocol import BESIDE_BYTES, PART_BYTES, WINDOW_BYTES

if TYPE_CHECKING:
    from envd.run.ticket import Answered, Ticket

# What was taken is told the worker when it is so much: not with every small item.
_TOLD_BYTES = WINDOW_BYTES // 4


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of an item, or the last one of it, which `ends` it."""

    payload: Buffer
    ends: bool


class Window:
    """The parts that have come and nobody has taken yet: no more than there was room for."""

    def __init__(self, limit: int) -> None:
        """Have room for items of at most *limit* bytes."""
        self.parts: deque[Part] = deque()
        self.news = asyncio.Event()
        self._limit = limit
        self._left = WINDOW_BYTES
        self._untold = 0
        self._item_bytes = 0
        self._is_within = False

    def put(self, payload: Buffer, *, ends: bool) -> None:
        """Have the next part.

        Raises:
            ValueError: it is larger than what there was room for; no worker sends it.
        """
        self._left -= len(payload) + BESIDE_BYTES
        self._item_bytes += len(payload)
        if len(payload) > PART_BYTES or self._left < 0 or self._item_bytes > self._limit:
            message = "more than there was room for"
            raise ValueError(message)
        self._is_within = not ends
        if ends:
            self._item_bytes = 0
        self.parts.append(Part(payload, ends))
        self.news.set()

    def take(self) -> Part:
        """Return the next part, which is there, and have room in its place."""
        part = self.parts.popleft()
        self._left += len(part.payload) + BESIDE_BYTES
        self._untold += len(part.payload) + BESIDE_BYTES
        return part

    def untold(self) -> int:
        """Return how much room there is that the worker is to be told of now."""
        if self._untold < _TOLD_BYTES:
            return 0
        told, self._untold = self._untold, 0
        return told

    def check_end(self) -> None:
        """See that the answer may end here.

        Raises:
            ValueError: within an item, where no worker ends it.
        """
        if self._is_within:
            message = "an item has no end"
            raise ValueError(message)


class Stream:
    """The parts of an answer, to be iterated once; `answered` is there when they are over.

    The worker sends what there is room for: nothing is lost, or held beyond a window, of a
    caller that takes its time. Close it: the worker stops if it is still at it.
    """

    def __init__(self, ticket: Ticket, window: Window, leave: Callable[[Ticket], None]) -> None:
        """Take from *window* what comes for *ticket*; *leave* leaves with it."""
        # The ticket, whose payload may be large, does not know the stream: what refers to
        # itself stays for a while when nobody wants it any more.
        self._ticket, self._window, self._leave = ticket, window, leave
        ticket.answer.add_done_callback(lambda _: window.news.set())

    @property
    def answered(self) -> Answered:
        """What the worker said when it was over.

        Raises:
            EnvdError: the answer ended with that.
        """
        answer = self._ticket.answer
        if isinstance(error := answer.exception(), EnvdError):
            raise error.anew()
        return answer.result()

    async def begin(self) -> None:
        """Wait until something has come.

        Raises:
            EnvdError: it is an error, and nothing is left of what came before it.
        """
        window = self._window
        while not window.parts and not self._ticket.answer.done():
            window.news.clear()
            await window.news.wait()
        if not window.parts:
            _ = self.answered

    def __aiter__(self) -> Self:
        """Return the stream itself."""
        return self

    async def __anext__(self) -> Part:
        """Return the next part.

        Raises:
            EnvdError: the answer ends with that.
        """
        await self.begin()
        if not self._window.parts:
            raise StopAsyncIteration
        part, ticket = self._window.take(), self._ticket
        if ticket.worker and not ticket.answer.done() and (room := self._window.untold()):
            ticket.worker.channel.grant(ticket.number, room)
        return part

    def close(self) -> None:
        """Leave, if the answer is not over."""
        answer = self._ticket.answer
        if not answer.done():
            answer.cancel()
            self._leave(self._ticket)
        elif not answer.cancelled():
            # Whoever has left does not want to know.
            answer.exception()
        self._window.parts.clear()
