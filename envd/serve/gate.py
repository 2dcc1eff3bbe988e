"""What a caller may ask of one server, settled as far as it can be when services are added."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from envd.access import certificates
from envd.errors import EnvdError, UnauthenticatedError
from envd.serve import audit, large
from envd.serve.callers import Door, Guarded, Opened
from envd.serve.calls import Admission, Calls
from envd.serve.context import Context
from envd.serve.oip import laden
from envd.serve.roles import AUDITED, HEALTH, ROLES

# Those of health and reflection are answered by gRPC itself.
_OWN = ("/envd.", "/inference.")
# What reads requests and writes answers otherwise than by their messages alone.
_CODERS: dict[str, tuple[Any, Any]] = {
    "/envd.v1.Predictions/Predict": (large.request, large.response),
    "/inference.GRPCInferenceService/ModelInfer": (laden.request, laden.response),
    "/inference.GRPCInferenceService/ModelStreamInfer": (laden.request, laden.streamed),
}
_CERTIFICATE = "x509_pem_cert"
# Each is read once, and not again for every request.
_names = functools.lru_cache(maxsize=1000)(certificates.names)


class Gate:
    """Takes services in the place of a server, and hands it what may be asked there.

    What has no role, or takes another than the caller's, is answered with PERMISSION_DENIED.
    An interceptor would have to look that up anew for every request, and sees no certificate.
    """

    def __init__(self, server: grpc.aio.Server, door: Door, calls: Calls) -> None:
        """Let those ask *server* whom *door* knows."""
        self._server = server
        self._door = door
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
        admission = self._admission(method)
        if not method.startswith(_OWN):
            return self._native(method, handler, admission)
        coders = _CODERS.get(method, (handler.request_deserializer, handler.response_serializer))
        read, written = coders
        if method in AUDITED:
            read = _noting(read)
        if handler.unary_unary:
            answer = self._calls.unary(method, _reading(read, handler.unary_unary), admission)
            return grpc.unary_unary_rpc_method_handler(answer, None, written)
        if handler.unary_stream:
            events = self._calls.stream(method, _reading(read, handler.unary_stream), admission)
            return grpc.unary_stream_rpc_method_handler(events, None, written)
        is_generator = inspect.isasyncgenfunction(handler.stream_stream)
        wrapped = self._calls.stream if is_generator else self._calls.both
        answers: Any = wrapped(method, handler.stream_stream, admission)
        return grpc.stream_stream_rpc_method_handler(answers, *coders)

    def _admission(self, method: str) -> Admission:
        """Return who may ask for *method*."""
        wanted, door = ROLES.get(method), self._door
        if isinstance(door, Opened):
            return Admission(lambda _: door.by, wanted)
        return Admission(
            lambda context: door.caller(_authorization(context), lambda: _shown(context)), wanted
        )

    def _native(self, method: str, handler: Any, admission: Admission) -> Any:
        """Return the *handler* of gRPC's own that asks first; only what is refused is a call."""
        is_free = method == HEALTH and isinstance(self._door, Guarded)

        def may(request: Any, context: Context) -> bool:
            # Not how models are, nor the sandbox: `models/NAME`, `sandbox/2`.
            if is_free and "/" not in request.service:
                return True
            try:
                admission.check(context)
            except EnvdError:
                return False
            return True

        read, written = handler.request_deserializer, handler.response_serializer
        if handler.stream_stream:
            refused: Any = self._calls.unary(method, _never, admission)
            answers: Any = _asking_each(may, handler.stream_stream, refused)
            return grpc.stream_stream_rpc_method_handler(answers, read, written)
        refused = self._calls.unary(method, _reading(read, _never), admission)
        if handler.unary_unary:
            answer = _asking(may, read, handler.unary_unary, refused)
            return grpc.unary_unary_rpc_method_handler(answer, None, written)
        events: Any = _asking(may, read, handler.unary_stream, refused)
        return grpc.unary_stream_rpc_method_handler(events, None, written)


def _shown(context: Context) -> Iterable[str]:
    """Return the names in the certificate of whoever calls."""
    found = iter(context.auth_context().get(_CERTIFICATE, ()))
    return next((_names(pem.decode()) for pem in found), ())


def _authorization(context: Context) -> str | None:
    for key, value in context.invocation_metadata() or ():
        if key == "authorization":
            return value if isinstance(value, str) else ""
    return None


def _reading(read: Any, answer: Any) -> Any:
    """Return *answer* as it takes bytes: what cannot be *read* is an error as others are.

    To gRPC, it would be one of the service.
    """
    return lambda encoded, context: answer(read(encoded), context)


def _noting(read: Any) -> Any:
    """Return *read*, which leaves in the call what the request is about."""

    def noted(encoded: bytes) -> Any:
        request = read(encoded)
        audit.note(request)
        return request

    return noted


def _asking(may: Any, read: Any, answer: Any, refused: Any) -> Any:
    """Return *answer*, as it takes bytes; what cannot be *read* is *refused*, too.

    gRPC would write a traceback into the log, as often as anybody likes.
    """

    async def asked(encoded: bytes, context: Context) -> Any:
        try:
            request = read(encoded)
        except DecodeError:
            return await refused(encoded, context)
        return await (
            answer(request, context) if may(request, context) else refused(encoded, context)
        )

    return asked


def _asking_each(may: Any, answer: Any, refused: Any) -> Any:
    async def asked(requests: Any, context: Context) -> AsyncIterator[Any]:
        if not may(requests, context):
            await refused(requests, context)
        async for one in answer(requests, context):
            yield one

    return asked


async def _never(request: Any, context: Context) -> None:
    """Refuse whoever has become somebody only now, between two looks."""
    del request, context
    message = "the daemon's credentials were changed just now; ask again"
    raise UnauthenticatedError(message)
