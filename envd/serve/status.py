"""Turns every failure into a google.rpc.Status, in one place."""

from __future__ import annotations

import errno
import logging
import string
import urllib.parse
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from envd.errors import (
    OUT_OF,
    CacheFullError,
    EnvdError,
    InternalError,
    LimitReachedError,
    RequestInvalidError,
    RootUnusableError,
)

log = logging.getLogger(__name__)
_LIMITS: dict[int | None, type[EnvdError]] = {
    **dict.fromkeys(OUT_OF, LimitReachedError),
    errno.ENOSPC: CacheFullError,
    errno.EDQUOT: CacheFullError,
    # A disk that fails is mounted anew to be read only.
    errno.EROFS: RootUnusableError,
    errno.EIO: RootUnusableError,
}
# What clients take of trailers is 8 KiB, and the message is in them twice: percent-encoded,
# and in the details in base 64.
_MAX_MESSAGE_BYTES, _MAX_METADATA_BYTES = 2400, 2400


def of(error: EnvdError, request_id: str) -> grpc.Status:
    """Return the gRPC status of *error*, its details in the trailers."""
    details = [_packed(_info(error, request_id))]
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


def _info(error: EnvdError, request_id: str) -> error_details_pb2.ErrorInfo:
    metadata, left = {"request_id": request_id}, _MAX_METADATA_BYTES
    # The shortest first: what is cut is the traceback, and its end is what says most.
    for key, value in sorted(error.metadata.items(), key=lambda item: len(item[1])):
        kept = value.encode()[-left:].decode(errors="ignore") if left else ""
        metadata[key] = kept
        left -= len(kept.encode())
    return error_details_pb2.ErrorInfo(reason=error.reason, domain="envd", metadata=metadata)


def _cut(message: str) -> str:
    """Shorten *message* until its percent-encoding fits."""
    message = message[:_MAX_MESSAGE_BYTES]
    while len(urllib.parse.quote(message, safe=string.printable)) > _MAX_MESSAGE_BYTES:
        message = message[: len(message) * 3 // 4]
    return message


def _packed(message: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def meant(error: Exception) -> EnvdError:
    """Return what *error* means for the caller: what envd does not know is its own fault."""
    if isinstance(error, EnvdError):
        return error
    if isinstance(error, OSError) and error.errno in _LIMITS:
        return _LIMITS[error.errno](f"the daemon cannot go on: {error}")
    if isinstance(error, DecodeError):
        return RequestInvalidError(f"the request is no message of its protocol: {error}")
    log.error("a request failed for a reason that envd does not know", exc_info=error)
    return InternalError(f"envd failed: {error!r}; this is a bug, see the daemon's log")
