"""One stream of requests: a few are dealt with at once, each in a task of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from envd.errors import DeadlineExceededError
from envd.serve import calls
from envd.serve.context import Context, write

_Request = TypeVar("_Request")
# What comes beyond waits in the connection.
_AT_ONCE = 64


class Sending:
    """Sends what several tasks have for one caller."""

    def __init__(self, context: Context, pause_s: float | None) -> None:
        """Send to the caller of *context*, who may take nothing for *pause_s*."""
        self._context = context
        self._pause_s = pause_s
        self._turn = asyncio.Lock()
        self._failure: DeadlineExceededError | None = None

    async def send(self, message: object) -> None:
        """Send *message* when those before it were taken.

        Raises:
            DeadlineExceededError: the caller takes nothing, and is sent nothing more.
        """
        async with self._turn:
            if self._failure:
                raise self._failure.anew()
            try:
                await write(self._context, message, self._pause_s)
            except DeadlineExceededError as error:
                self._failure = error
                raise


async def each(
    requests: AsyncIterator[_Request],
    answer: Callable[[_Request], Coroutine[Any, Any, None]],
    draining: asyncio.Event,
) -> None:
    """Have *answer* deal with each of the *requests*, until they are over and so is it.

    When *draining* is set, no more of them are read.

    Raises:
        ShuttingDownError: the caller may have asked more.
        EnvdError: what *answer* raises ends it all.
    """
    free = asyncio.Semaphore(_AT_ONCE)

    async def one(request: _Request) -> None:
        try:
            await answer(request)
        finally:
            free.release()

    async def read() -> None:
        async for request in requests:
            await free.acquire()
            group.create_task(one(request))

    stopping = asyncio.create_task(draining.wait())
    try:
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(read())
            stopping.add_done_callback(lambda _: reading.cancel())
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    finally:
        stopping.cancel()
    if reading.cancelled():
        raise calls.stopping()
