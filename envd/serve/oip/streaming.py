"""One stream of requests: each is answered when its answer is there, and a few at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Generic, TypeVar

from envd.serve import calls

_Request = TypeVar("_Request")
_Answer = TypeVar("_Answer")
# What comes beyond waits in the connection.
_AT_ONCE = 64


async def answers(
    requests: AsyncIterator[_Request],
    answer: Callable[[_Request], Coroutine[Any, Any, _Answer]],
    draining: asyncio.Event,
) -> AsyncIterator[_Answer]:
    """Yield what *answer* says to each of the *requests*, in the order in which it does.

    When *draining* is set, no more of them are read.

    Raises:
        ShuttingDownError: the caller may have asked more.
    """
    stream = _Stream(answer)
    reading = asyncio.create_task(stream.read(requests))
    reading.add_done_callback(lambda _: stream.over())
    stopping = asyncio.create_task(draining.wait())
    stopping.add_done_callback(lambda _: reading.cancel())
    try:
        while task := await stream.ended.get():
            yield task.result()
            stream.free.release()
        if reading.cancelled():
            raise calls.stopping()
        reading.result()
    finally:
        left = [stopping, reading, *stream.under_way]
        for one in left:
            one.cancel()
        await asyncio.gather(*left, return_exceptions=True)


class _Stream(Generic[_Request, _Answer]):
    """The requests of a stream that are under way, and those that have `ended`, None last."""

    def __init__(self, answer: Callable[[_Request], Coroutine[Any, Any, _Answer]]) -> None:
        self._answer = answer
        self._is_read = False
        self.under_way: set[asyncio.Task[_Answer]] = set()
        self.ended: asyncio.Queue[asyncio.Task[_Answer] | None] = asyncio.Queue()
        # An answer holds its place until it is sent.
        self.free = asyncio.Semaphore(_AT_ONCE)

    async def read(self, requests: AsyncIterator[_Request]) -> None:
        async for request in requests:
            await self.free.acquire()
            task = asyncio.create_task(self._answer(request))
            self.under_way.add(task)
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[_Answer]) -> None:
        self.under_way.discard(task)
        self.ended.put_nowait(task)
        if self._is_read and not self.under_way:
            self.ended.put_nowait(None)

    def over(self) -> None:
        self._is_read = True
        if not self.under_way:
            self.ended.put_nowait(None)
