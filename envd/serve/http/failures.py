"""Every failure in the form of MLflow's server: a status, and JSON with an `error_code`.

The tables are those of mlflow 3.17 (`mlflow/exceptions.py`, `mlflow/error_classification.py`):
its clients know these codes and no others.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from envd.errors import (
    DeadlineExceededError,
    EnvdError,
    PayloadTooLargeError,
    UnauthenticatedError,
)

STATUS = {
    "ABORTED": 409,
    "ALREADY_EXISTS": 409,
    "BAD_REQUEST": 400,
    "CANCELLED": 499,
    "CUSTOMER_UNAUTHORIZED": 401,
    "DATA_LOSS": 500,
    "DEADLINE_EXCEEDED": 504,
    "ENDPOINT_NOT_FOUND": 404,
    "INTERNAL_ERROR": 500,
    "INVALID_PARAMETER_VALUE": 400,
    "INVALID_STATE": 500,
    "NOT_FOUND": 404,
    "NOT_IMPLEMENTED": 501,
    "PERMISSION_DENIED": 403,
    "REQUEST_LIMIT_EXCEEDED": 429,
    "RESOURCE_ALREADY_EXISTS": 400,
    "RESOURCE_CONFLICT": 409,
    "RESOURCE_DOES_NOT_EXIST": 404,
    "RESOURCE_EXHAUSTED": 429,
    "TEMPORARILY_UNAVAILABLE": 503,
    "UNAUTHENTICATED": 401,
}
_INVALID, _INTERNAL = ("KAM00", "INVALID_PARAMETER_VALUE"), ("XXM00", "CLIENT_INTERNAL_ERROR")
_NOT_FOUND, _DENIED = ("KAM00", "RESOURCE_NOT_FOUND"), ("KAM00", "PERMISSION_DENIED")
_CLASSES = {
    "BAD_REQUEST": _INVALID,
    "CUSTOMER_UNAUTHORIZED": _DENIED,
    "ENDPOINT_NOT_FOUND": _NOT_FOUND,
    "INTERNAL_ERROR": _INTERNAL,
    "INVALID_PARAMETER_VALUE": _INVALID,
    "INVALID_STATE": _INTERNAL,
    "NOT_FOUND": _NOT_FOUND,
    "PERMISSION_DENIED": _DENIED,
    "RESOURCE_ALREADY_EXISTS": ("KAM00", "RESOURCE_ALREADY_EXISTS"),
    "RESOURCE_DOES_NOT_EXIST": _NOT_FOUND,
    "TEMPORARILY_UNAVAILABLE": _INTERNAL,
    "UNAUTHENTICATED": _DENIED,
}
_BY_CODE = {
    "ABORTED": "ABORTED",
    "DEADLINE_EXCEEDED": "DEADLINE_EXCEEDED",
    # The model or its environment is at fault, and neither the caller nor envd.
    "FAILED_PRECONDITION": "INVALID_STATE",
    "INTERNAL": "INTERNAL_ERROR",
    "INVALID_ARGUMENT": "BAD_REQUEST",
    "NOT_FOUND": "RESOURCE_DOES_NOT_EXIST",
    "PERMISSION_DENIED": "PERMISSION_DENIED",
    # Where no time helps, it is the machine that has no room.
    "RESOURCE_EXHAUSTED": "TEMPORARILY_UNAVAILABLE",
    "UNAUTHENTICATED": "UNAUTHENTICATED",
    "UNAVAILABLE": "TEMPORARILY_UNAVAILABLE",
    # Whatever a model raises is a bad request to MLflow.
    "UNKNOWN": "BAD_REQUEST",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """What is answered in the place of a prediction."""

    status: int
    content: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


class MediaTypeError(EnvdError):
    """The content type is none that is known; send another."""

    code, reason = "INVALID_ARGUMENT", "MEDIA_TYPE"


class NotLoadedError(EnvdError):
    """The model is not loaded (yet); ask it, or come back."""

    code, reason, retry_after_s = "UNAVAILABLE", "NOT_LOADED", 2.0


class TooSlowError(DeadlineExceededError):
    """The client took too long to send its request; be faster."""

    reason = "TOO_SLOW"


class BodyTooLargeError(PayloadTooLargeError):
    """The body is over the limit; send less."""


_OF_MODELS = {"MODEL_RAISED", "IMPORT_FAILED"}
_STATUS_OF = {MediaTypeError: 415, TooSlowError: 408, BodyTooLargeError: 413}


def of(error: EnvdError) -> Failure:
    """Return *error* as MLflow's server would answer it."""
    code = error.metadata.get("error_code") or _code(error)
    status = _STATUS_OF.get(type(error)) or STATUS.get(code, 500)
    state, kind = _CLASSES.get(code, (None, None))
    trace = error.metadata.get("traceback")
    if error.reason == "MODEL_RAISED" and "error_code" in error.metadata:
        # An exception of MLflow's own has said all there is to say.
        trace = None
    document = {
        "error_code": code,
        "message": error.message,
        "sqlstate": error.metadata.get("sqlstate", state),
        "error_class": error.metadata.get("error_class", kind),
        "stack_trace": trace,
    }
    headers = _headers(error)
    if isinstance(error, MediaTypeError):
        # So does MLflow, of this alone.
        headers["content-type"] = "text/plain; charset=utf-8"
        return Failure(status, error.message.encode(), headers)
    content = {key: value for key, value in document.items() if value is not None}
    return Failure(status, json.dumps(content).encode(), headers)


def of_inference(error: EnvdError) -> Failure:
    """Return *error* as servers of the Open Inference Protocol answer it."""
    if error.reason in _OF_MODELS:
        # The request may be as good as any.
        status = STATUS["INTERNAL_ERROR"]
    else:
        status = _STATUS_OF.get(type(error)) or STATUS[_code(error)]
    return Failure(status, json.dumps({"error": error.message}).encode(), _headers(error))


def _headers(error: EnvdError) -> dict[str, str]:
    headers = {"content-type": "application/json", "x-envd-reason": error.reason}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
    if isinstance(error, UnauthenticatedError):
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, TooSlowError):
        headers["connection"] = "close"
    return headers


def _code(error: EnvdError) -> str:
    if error.reason == "IMPORT_FAILED" and error.metadata.get("stage") != "load":
        # A worker met it while it answered; a build says what it was for.
        return "BAD_REQUEST" if "traceback" in error.metadata else "INVALID_STATE"
    if error.code == "RESOURCE_EXHAUSTED" and error.retry_after_s is not None:
        return "REQUEST_LIMIT_EXCEEDED"
    if isinstance(error, BodyTooLargeError):
        return "BAD_REQUEST"
    if error.reason == "PAYLOAD_TOO_LARGE":
        # Of an answer: what comes in is refused as BodyTooLargeError.
        return "INVALID_STATE"
    return _BY_CODE[error.code]


def document(status: int, message: str) -> bytes:
    """Return the JSON of a failure that there was no request for yet."""
    code = {408: "DEADLINE_EXCEEDED", 503: "TEMPORARILY_UNAVAILABLE"}.get(status, "BAD_REQUEST")
    state, kind = _CLASSES.get(code, (None, None))
    found = {"error_code": code, "message": message, "sqlstate": state, "error_class": kind}
    return json.dumps({key: value for key, value in found.items() if value}).encode()
