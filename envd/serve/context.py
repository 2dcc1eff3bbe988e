"""The context of a call: its type, which is generic to mypy only, and how messages are written."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc

if TYPE_CHECKING:
    Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
else:
    Context = grpc.aio.ServicerContext


async def write(context: Context, message: Any) -> None:
    """Send one of the messages of a stream, when the caller takes it."""
    try:
        await context.write(message)
    except grpc.aio.InternalError:
        # The caller has left, which gRPC says in another way when it has seen it.
        raise asyncio.CancelledError from None
