"""What a caller may ask of one socket, settled when the services are added to its server."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

import grpc

from envd.errors import PermissionDeniedError
from envd.serve import large
from envd.serve.calls import Calls
from envd.serve.context import Context
from envd.serve.oip import laden
from envd.serve.roles import ROLES, Role

# Those of health and reflection are answered by gRPC itself.
_OWN = ("/envd.", "/inference.")
# What reads requests and writes answers otherwise than by their messages alone.
_CODERS: dict[str, tuple[Any, Any]] = {
    "/envd.v1.Predictions/Predict": (large.request, large.response),
    "/inference.GRPCInferenceService/ModelInfer": (laden.request, laden.response),
    "/inference.GRPCInferenceService/ModelStreamInfer": (laden.request, laden.streamed),
}


class Gate:
    """Takes services in the place of a server, and hands it what may be asked there.

    What has no role, or another one, is answered with PERMISSION_DENIED. An interceptor
    would have to decide that anew for every request.
    """

    def __init__(self, server: grpc.aio.Server, allowed: Collection[Role], calls: Calls) -> None:
        """Let callers with the roles *allowed* ask *server*."""
        self._server = server
        self._allowed = allowed
        self._calls = calls

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Add a service."""
        guarded = {
            name: self._guarded(f"/{service}/{name}", handler) for name, handler in handlers.items()
        }
        self._server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(service, guarded)]
        )

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Do nothing: what generated code adds here, it adds by name as well."""

    def _guarded(self, method: str, handler: Any) -> Any:
        if ROLES.get(method) not in self._allowed:
            denied = self._calls.unary(method, _deny)
            return grpc.unary_unary_rpc_method_handler(denied)
        if not method.startswith(_OWN):
            return handler
        coders = _CODERS.get(method, (handler.request_deserializer, handler.response_serializer))
        read, written = coders
        if handler.unary_unary:
            answer = self._calls.unary(method, _reading(read, handler.unary_unary))
            return grpc.unary_unary_rpc_method_handler(answer, None, written)
        if handler.unary_stream:
            events = self._calls.stream(method, _reading(read, handler.unary_stream))
            return grpc.unary_stream_rpc_method_handler(events, None, written)
        is_generator = inspect.isasyncgenfunction(handler.stream_stream)
        wrapped = self._calls.stream if is_generator else self._calls.both
        answers: Any = wrapped(method, handler.stream_stream)
        return grpc.stream_stream_rpc_method_handler(answers, *coders)


def _reading(read: Any, answer: Any) -> Any:
    """Return *answer* as it takes bytes: what cannot be *read* is an error as others are.

    To gRPC, it would be one of the service.
    """
    return lambda encoded, context: answer(read(encoded), context)


async def _deny(request: Any, context: Context) -> None:
    del request, context
    message = "this socket may not do that; ask on the admin socket"
    raise PermissionDeniedError(message)
