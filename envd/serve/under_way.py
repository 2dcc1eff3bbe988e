"""Counts the requests under way, so that a daemon stops when they have ended.

gRPC alone would wait for whoever watches health as long as for a prediction.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from envd.serve.context import Context


class UnderWay(grpc.aio.ServerInterceptor):
    """The requests of envd's own services that have no answer yet."""

    def __init__(self) -> None:
        """Begin with none."""
        self._count = 0
        self.none = asyncio.Event()
        self.none.set()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        details: grpc.HandlerCallDetails,
    ) -> Any:
        """Count the call that *details* describes, from its start to its end."""
        handler = await continuation(details)
        if not details.method.startswith("/envd.") or handler.unary_unary is None:
            return handler
        return grpc.unary_unary_rpc_method_handler(
            self._counted(handler.unary_unary),
            handler.request_deserializer,
            handler.response_serializer,
        )

    def _counted(self, answer: Callable[[Any, Context], Awaitable[Any]]) -> Any:
        async def counted(request: Any, context: Context) -> Any:
            self._count += 1
            self.none.clear()
            try:
                return await answer(request, context)
            finally:
                self._count -= 1
                if not self._count:
                    self.none.set()

        return counted
