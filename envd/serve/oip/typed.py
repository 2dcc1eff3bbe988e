"""Typed elements of tensors, as `InferTensorContents` has them, and the bytes they are elsewhere.

Truths and floating-point numbers are on the wire as they are in a buffer, and go from the one
to the other without a look at each. Whole numbers do not: some thousands at a time, so that
a thread that does it lets the loop go on.
"""

from __future__ import annotations

import array
import sys
from collections.abc import Iterator
from typing import Any

from envd.errors import PayloadInvalidError
from envd.run.envd_worker import tensors
from envd.serve.oip import inference_pb2 as oip

# Where typed elements stand, by their datatype.
FIELDS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_FIXED = ("BOOL", "FP32", "FP64")
# The wire's number for what has a length (https://protobuf.dev/programming-guides/encoding/).
_HAS_LENGTH, _SEVEN_BITS, _MORE = 2, 0x7F, 0x80
_AT_ONCE, _SIZE_BYTES = 1 << 14, 4
_IS_SWAPPED = sys.byteorder == "big"
_Input = oip.ModelInferRequest.InferInputTensor


def size(one: _Input) -> int:
    """Return how many bytes the typed elements of *one* are elsewhere, at most."""
    field = FIELDS.get(one.datatype)
    if field is None:
        return 0
    count = len(getattr(one.contents, field))
    if one.datatype == "BYTES":
        return one.contents.ByteSize() + _SIZE_BYTES * count
    own: int = tensors.CODES[one.datatype][1]
    return own * count


def packed(one: _Input) -> bytes:
    """Return the elements of *one* as a buffer has them.

    Raises:
        PayloadInvalidError: they are not of its datatype.
    """
    field = FIELDS.get(one.datatype)
    if field is None:
        message = f"`{one.name}` is {one.datatype}, which has only raw contents"
        raise PayloadInvalidError(message, input=one.name, datatype=one.datatype)
    values = getattr(one.contents, field)
    if not values or len(one.contents.ListFields()) > 1:
        message = f"`{one.name}` is {one.datatype}, and only `{field}` may hold its elements"
        raise PayloadInvalidError(message, input=one.name, datatype=one.datatype)
    if one.datatype == "BYTES":
        texts: bytes = tensors.packed_texts(values)
        return texts
    if one.datatype in _FIXED:
        return _behind_length(one.contents.SerializeToString())
    try:
        return _whole_numbers(one.datatype, values)
    except OverflowError as error:
        message = f"`{one.name}` has an element that is no {one.datatype}: {error}"
        raise PayloadInvalidError(message, input=one.name, datatype=one.datatype) from error


def unpack(buffer: memoryview, datatype: str, contents: oip.InferTensorContents) -> None:
    """Put the elements in *buffer* into *contents*.

    Raises:
        ValueError: they are not of *datatype*.
        tensors.Malformed: likewise.
    """
    field = FIELDS[datatype]
    if datatype == "BYTES":
        getattr(contents, field).extend(tensors.texts(buffer))
    elif datatype in _FIXED:
        number = oip.InferTensorContents.DESCRIPTOR.fields_by_name[field].number
        tag = number << 3 | _HAS_LENGTH
        contents.MergeFromString(bytes([tag, *_length(len(buffer))]) + buffer)
    else:
        _extend(getattr(contents, field), buffer, datatype)


def _whole_numbers(datatype: str, values: Any) -> bytes:
    found: array.array[int] = array.array(tensors.CODES[datatype][0] or "")
    for start in range(0, len(values), _AT_ONCE):
        found.extend(values[start : start + _AT_ONCE])
    if _IS_SWAPPED:
        found.byteswap()
    return found.tobytes()


def _extend(field: Any, buffer: memoryview, datatype: str) -> None:
    code, size = tensors.CODES[datatype]
    found: array.array[int] = array.array(code or "")
    found.frombytes(buffer)
    if _IS_SWAPPED:
        found.byteswap()
    for start in range(0, len(buffer) // size, _AT_ONCE):
        field.extend(found[start : start + _AT_ONCE])


def _behind_length(text: bytes) -> bytes:
    """Return what stands in the first field of a message, behind its number and its length."""
    place, size = 1, 0
    while text[place] & _MORE:
        size |= (text[place] & _SEVEN_BITS) << 7 * (place - 1)
        place += 1
    size |= text[place] << 7 * (place - 1)
    return text[place + 1 : place + 1 + size]


def _length(size: int) -> Iterator[int]:
    while size > _SEVEN_BITS:
        yield size & _SEVEN_BITS | _MORE
        size >>= 7
    yield size
