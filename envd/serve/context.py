"""The context of a call: its type, which is generic to mypy only, and how messages are written."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc

from envd.errors import DeadlineExceededError

if TYPE_CHECKING:
    Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
else:
    Context = grpc.aio.ServicerContext


async def write(context: Context, message: Any, pause_s: float | None) -> None:
    """Send one of the messages of a stream, when the caller takes it.

    Raises:
        DeadlineExceededError: it has not taken those before for *pause_s*.
    """
    try:
        async with asyncio.timeout(pause_s):
            await context.write(message)
    except TimeoutError:
        said = f"nothing of the answer was taken for {pause_s:g} s (`daemon.max_pause`)"
        raise DeadlineExceededError(said) from None
    except grpc.aio.InternalError:
        # The caller has left, which gRPC says in another way when it has seen it.
        raise asyncio.CancelledError from None
