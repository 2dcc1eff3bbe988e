"""Predict's messages with their payload beside them.

A message of protobuf copies what it holds when it is read, when it is asked for it, when it is
given it and when it is written: with 64 MiB nobody else is served for a third of a second. But the
fields of a message may stand in any order, and the bytes of two are those of one with the fields
of both (https://protobuf.dev/programming-guides/encoding/#last-one-wins), so that a payload can be
cut out of the bytes of one, and joined to them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from envd_client.v1 import envd_pb2 as api

from envd.run.channel import Buffer

_Message = TypeVar("_Message")
# Of less it takes longer to do this than to copy it.
LARGE_BYTES = 1 << 18
HAS_LENGTH, _VARINT = 2, 0
_REQUEST_TAG = api.PredictRequest.PAYLOAD_FIELD_NUMBER << 3 | HAS_LENGTH
_RESPONSE_TAG = bytes([api.PredictResponse.PAYLOAD_FIELD_NUMBER << 3 | HAS_LENGTH])
# What has more fields, or longer numbers, takes longer to look through than protobuf does.
_MOST_FIELDS, _MOST_BITS = 64, 64


@dataclass(frozen=True, slots=True)
class Laden(Generic[_Message]):
    """A message, and the payload that it has or is to have."""

    message: _Message
    payload: Buffer


@dataclass(frozen=True, slots=True)
class Divided:
    """The bytes of a message in pieces: what some of its fields hold, and the `rest`."""

    cut: list[memoryview]
    rest: list[memoryview]


def request(encoded: bytes) -> Laden[api.PredictRequest]:
    """Read a request.

    Raises:
        DecodeError: it is none.
    """
    found = divided(encoded, _REQUEST_TAG, _MOST_FIELDS) if len(encoded) > LARGE_BYTES else None
    # Which of several payloads counts is up to protobuf.
    if found is None or len(found.cut) != 1:
        message = api.PredictRequest.FromString(encoded)
        return Laden(message, message.payload)
    return Laden(api.PredictRequest.FromString(b"".join(found.rest)), found.cut[0])


def response(laden: Laden[api.PredictResponse]) -> bytes:
    """Write an answer, which has no payload of its own."""
    length = varint(len(laden.payload))
    return b"".join([laden.message.SerializeToString(), _RESPONSE_TAG, length, laden.payload])


def size(laden: Laden[api.PredictResponse]) -> int:
    """Return how long an answer is when it is written."""
    length = len(laden.payload)
    return laden.message.ByteSize() + len(_RESPONSE_TAG) + len(varint(length)) + length


def divided(encoded: bytes, wanted: int, most_fields: int) -> Divided | None:
    """Return what the fields with the tag *wanted* hold, and all else.

    None where that takes more than a look at *most_fields*: protobuf will know.
    """
    view, place, kept = memoryview(encoded), 0, 0
    found = Divided([], [])
    try:
        for _ in range(most_fields):
            if place == len(encoded):
                found.rest.append(view[kept:])
                return found
            tag, kind = place, encoded[place] & 7
            if encoded[tag] >= 1 << 7 or kind not in {HAS_LENGTH, _VARINT}:
                return None
            number, begin = _read_varint(encoded, tag + 1)
            place = begin + number if kind == HAS_LENGTH else begin
            if encoded[tag] == wanted:
                found.rest.append(view[kept:tag])
                found.cut.append(view[begin:place])
                kept = place
    except (IndexError, ValueError):
        # It is cut off.
        pass
    return None


def _read_varint(encoded: bytes, place: int) -> tuple[int, int]:
    """Return the number at *place*, and the place behind it.

    Raises:
        IndexError: it is cut off.
        ValueError: it is longer than any.
    """
    value = 0
    for shift in range(0, _MOST_BITS, 7):
        value |= (encoded[place] & 0x7F) << shift
        place += 1
        if encoded[place - 1] < 1 << 7:
            return value, place
    raise ValueError(place)


def varint(value: int) -> bytes:
    """Write a number as the wire has it."""
    found = bytearray()
    while value >= 1 << 7:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
