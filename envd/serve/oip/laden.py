"""ModelInfer's messages with their raw contents beside them, as `envd.serve.large` has others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from envd.run.channel import Buffer
from envd.serve.large import read_varint, varint
from envd.serve.oip import inference_pb2 as oip

_Message = TypeVar("_Message")
_HAS_LENGTH = 2
_REQUEST_TAG = oip.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER << 3 | _HAS_LENGTH
_RESPONSE_TAG = bytes([oip.ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER << 3 | _HAS_LENGTH])
_ANSWER_TAG = bytes([oip.ModelStreamInferResponse.INFER_RESPONSE_FIELD_NUMBER << 3 | _HAS_LENGTH])
# What is done for less, or for more of them, takes longer than copying.
_LARGE_BYTES, _MOST_FIELDS = 1 << 18, 1000


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
    found = _divided(encoded) if len(encoded) > _LARGE_BYTES else None
    if found is None:
        message = oip.ModelInferRequest.FromString(encoded)
        return Laden(message, message.raw_input_contents)
    rest, raw = found
    return Laden(oip.ModelInferRequest.FromString(b"".join(rest)), raw)


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


def _divided(encoded: bytes) -> tuple[list[memoryview], list[memoryview]] | None:
    """Return what is not raw contents in a request, in pieces, and the raw contents.

    None where that takes more than a look at a few fields: protobuf will know.
    """
    view, place, kept = memoryview(encoded), 0, 0
    rest, raw = list[memoryview](), list[memoryview]()
    try:
        for _ in range(_MOST_FIELDS):
            if place >= len(encoded):
                return [*rest, view[kept:]], raw
            tag = place
            if encoded[tag] >= 1 << 7 or encoded[tag] & 7 != _HAS_LENGTH:
                return None
            length, begin = read_varint(encoded, tag + 1)
            place = begin + length
            if place > len(encoded):
                return None
            if encoded[tag] == _REQUEST_TAG:
                rest.append(view[kept:tag])
                raw.append(view[begin:place])
                kept = place
    except (IndexError, ValueError):
        pass
    return None
