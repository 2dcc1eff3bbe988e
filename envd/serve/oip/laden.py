"""ModelInfer's messages with their raw contents beside them, as `envd.serve.large` has others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from envd.run.channel import Buffer
from envd.serve.large import HAS_LENGTH, LARGE_BYTES, divided, varint
from envd.serve.oip import inference_pb2 as oip

_Message = TypeVar("_Message")
_REQUEST_TAG = oip.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER << 3 | HAS_LENGTH
_RESPONSE_TAG = bytes([oip.ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER << 3 | HAS_LENGTH])
_ANSWER_TAG = bytes([oip.ModelStreamInferResponse.INFER_RESPONSE_FIELD_NUMBER << 3 | HAS_LENGTH])
# To look at more takes longer than copying.
_MOST_FIELDS = 1000


@dataclass(frozen=True, slots=True)
class Laden(Generic[_Message]):
    """A message, and the raw contents that it has or is to have."""

    message: _Message
    raw: Sequence[Buffer] = ()


@dataclass(frozen=True, slots=True)
class Streamed:
    """One of the answers in a stream: why there is none, or an answer."""

    answer: Laden[oip.ModelInferResponse]
    error: str = ""


def request(encoded: bytes) -> Laden[oip.ModelInferRequest]:
    """Read a request.

    Raises:
        DecodeError: it is none.
    """
    found = divided(encoded, _REQUEST_TAG, _MOST_FIELDS) if len(encoded) > LARGE_BYTES else None
    if found is None:
        message = oip.ModelInferRequest.FromString(encoded)
        return Laden(message, message.raw_input_contents)
    return Laden(oip.ModelInferRequest.FromString(b"".join(found.rest)), found.cut)


def response(laden: Laden[oip.ModelInferResponse]) -> bytes:
    """Write an answer, which has no raw contents of its own."""
    return b"".join(_pieces(laden))


def streamed(one: Streamed) -> bytes:
    """Write one of the answers in a stream."""
    pieces = list(_pieces(one.answer))
    error = oip.ModelStreamInferResponse(error_message=one.error).SerializeToString()
    return b"".join([error, _ANSWER_TAG, varint(sum(map(len, pieces))), *pieces])


def size(laden: Laden[oip.ModelInferResponse]) -> int:
    """Return how long an answer is when it is written."""
    return sum(map(len, _pieces(laden)))


def held(laden: Laden[Any]) -> int:
    """Return about how many bytes a request or an answer keeps in memory."""
    size: int = laden.message.ByteSize()
    return size + sum(map(len, laden.raw))


def _pieces(laden: Laden[oip.ModelInferResponse]) -> Iterator[Buffer]:
    yield laden.message.SerializeToString()
    for one in laden.raw:
        yield _RESPONSE_TAG + varint(len(one))
        yield one
