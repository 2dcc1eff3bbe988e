"""Turns every failure into a google.rpc.Status, in one place."""

from __future__ import annotations

import errno
import functools
import logging
import string
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from envd.errors import OUT_OF, CacheFullError, EnvdError, InternalError, LimitReachedError
from envd.serve.context import Context

log = logging.getLogger(__name__)
_LIMITS: dict[int | None, type[EnvdError]] = {
    **dict.fromkeys(OUT_OF, LimitReachedError),
    errno.ENOSPC: CacheFullError,
    errno.EDQUOT: CacheFullError,
}
_Handler = TypeVar("_Handler", bound=Callable[..., Any])
# What clients take of trailers is 8 KiB, and the message is in them twice: percent-encoded,
# and in the details in base 64.
_MAX_MESSAGE_BYTES, _MAX_METADATA_BYTES = 2400, 2400


def of(error: EnvdError) -> grpc.Status:
    """Return the gRPC status of *error*, its details in the trailers."""
    details = [_packed(_info(error))]
    if error.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        details.append(_packed(retry))
    status = status_pb2.Status(
        code=code_pb2.Code.Value(error.code),
        message=_cut(error.message),
        details=details,
    )
    return rpc_status.to_status(status)


def _info(error: EnvdError) -> error_details_pb2.ErrorInfo:
    metadata, left = {}, _MAX_METADATA_BYTES
    # The shortest first: what is cut is the traceback, and its end is what says most.
    for key, value in sorted(error.metadata.items(), key=lambda item: len(item[1])):
        kept = value.encode()[-left:].decode(errors="ignore") if left else ""
        metadata[key] = kept
        left -= len(kept.encode())
    return error_details_pb2.ErrorInfo(reason=error.reason, domain="envd", metadata=metadata)


def _cut(message: str) -> str:
    """Shorten *message* until its percent-encoding fits."""
    while len(urllib.parse.quote(message, safe=string.printable)) > _MAX_MESSAGE_BYTES:
        message = message[: len(message) * 3 // 4]
    return message


def _packed(message: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def unary(handler: _Handler) -> _Handler:
    """Let *handler*, a coroutine method, raise EnvdError."""

    @functools.wraps(handler)
    async def guarded(self: object, request: Any, context: Context) -> Any:
        return await _guard(handler(self, request, context), context)

    return guarded  # type: ignore[return-value]


def stream(handler: _Handler) -> _Handler:
    """Let *handler*, an asynchronous generator method, raise EnvdError."""

    @functools.wraps(handler)
    async def guarded(self: object, request: Any, context: Context) -> AsyncIterator[Any]:
        try:
            async for message in handler(self, request, context):
                yield message
        except Exception as error:  # noqa: BLE001
            await _abort(error, context)

    return guarded  # type: ignore[return-value]


async def _guard(answer: Awaitable[Any], context: Context) -> Any:
    try:
        return await answer
    except Exception as error:  # noqa: BLE001
        await _abort(error, context)


async def _abort(error: Exception, context: Context) -> None:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if isinstance(error, OSError) and error.errno in _LIMITS:
        error = _LIMITS[error.errno](f"the daemon cannot go on: {error}")
    if not isinstance(error, EnvdError):
        log.error("a request failed for a reason that envd does not know", exc_info=error)
        error = InternalError(f"envd failed: {error!r}; this is a bug, see the daemon's log")
    await context.abort_with_status(of(error))
