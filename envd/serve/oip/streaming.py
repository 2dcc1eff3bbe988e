"""One stream of requests: a few are dealt with at once, each in a task of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from envd.serve import calls

_Request = TypeVar("_Request")
# What comes beyond waits in the connection.
_AT_ONCE = 64


async def each(
    requests: AsyncIterator[_Request],
    answer: Callable[[_Request], Coroutine[Any, Any, None]],
    draining: asyncio.Event,
) -> None:
    """Have *answer* deal with each of the *requests*, until they are over and so is it.

    When *draining* is set, no more of them are read. What it raises is nobody's.

    Raises:
        ShuttingDownError: the caller may have asked more.
    """
    free, under_way = asyncio.Semaphore(_AT_ONCE), set[asyncio.Task[None]]()

    def ended(task: asyncio.Task[None]) -> None:
        under_way.discard(task)
        free.release()

    async def read() -> None:
        async for request in requests:
            await free.acquire()
            task = asyncio.create_task(answer(request))
            under_way.add(task)
            task.add_done_callback(ended)

    reading = asyncio.create_task(read())
    stopping = asyncio.create_task(draining.wait())
    stopping.add_done_callback(lambda _: reading.cancel())
    try:
        await asyncio.wait([reading])
        while under_way:
            await asyncio.wait(under_way)
        if reading.cancelled():
            raise calls.stopping()
        reading.result()
    finally:
        left = [stopping, reading, *under_way]
        for one in left:
            one.cancel()
        await asyncio.gather(*left, return_exceptions=True)
