"""A program: raw contents beside their messages are those that protobuf reads and writes.

Not a test of pytest's process: tritonclient's messages are in that.
"""

from __future__ import annotations

import contextlib
import time

from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as some

from envd.serve.oip import inference_pb2 as oip
from envd.serve.oip import laden

LARGE = 1 << 18
_RAW = some.lists(
    some.sampled_from([0, 1, 127, 128, 16384, LARGE - 100, LARGE + 1]).map(bytes), max_size=4
)
_SHORT = some.text(max_size=3)
_INPUTS = some.builds(
    oip.ModelInferRequest.InferInputTensor,
    name=_SHORT,
    datatype=_SHORT,
    shape=some.lists(some.integers(-1, 1000), max_size=3),
)
_REQUESTS = some.builds(
    oip.ModelInferRequest,
    model_name=_SHORT,
    id=some.text(max_size=200),
    inputs=some.lists(_INPUTS, max_size=3),
)
_OUTPUTS = some.builds(oip.ModelInferResponse.InferOutputTensor, name=_SHORT)
_RESPONSES = some.builds(
    oip.ModelInferResponse, id=_SHORT, outputs=some.lists(_OUTPUTS, max_size=3)
)


@settings(deadline=None)
@given(
    message=_REQUESTS,
    raw=_RAW,
    extra=some.binary(max_size=8) | some.just(b"\x1a\x01a"),
    cut=some.integers(0, 40),
    at=some.integers(0, 60),
    byte=some.none() | some.integers(0, 255),
)
def requests_are_read_as_protobuf_reads_them(message, raw, extra, cut, at, byte) -> None:
    message.raw_input_contents.extend(raw)
    encoded = bytearray(message.SerializeToString() + extra)
    if byte is not None:
        encoded[at : at + 1] = bytes([byte])
        encoded = encoded[: len(encoded) - cut]
    try:
        expected = oip.ModelInferRequest.FromString(bytes(encoded))
    except DecodeError:
        expected = None
    try:
        found = laden.request(bytes(encoded))
    except DecodeError:
        found = None

    assert bool(found) == bool(expected)
    if found and expected:
        assert [bytes(one) for one in found.raw] == list(expected.raw_input_contents)
        found.message.raw_input_contents[:] = [bytes(one) for one in found.raw]
        assert found.message == expected


@settings(deadline=None)
@given(message=_RESPONSES, raw=_RAW, error=_SHORT)
def answers_are_written_as_protobuf_writes_them(message, raw, error) -> None:
    one = laden.Laden(message, [memoryview(each) for each in raw])
    encoded, streamed = laden.response(one), laden.streamed(laden.Streamed(one, error))
    message = oip.ModelInferResponse.FromString(encoded)
    both = oip.ModelStreamInferResponse(error_message=error, infer_response=message)

    assert laden.size(one) == len(encoded) == message.ByteSize()
    assert list(message.raw_output_contents) == raw
    assert oip.ModelStreamInferResponse.FromString(streamed) == both
    assert len(streamed) == both.ByteSize()


def a_number_without_an_end_takes_no_time() -> None:
    began = time.thread_time()
    with contextlib.suppress(DecodeError):
        laden.request(b"\x0a" + b"\xff" * 2 * LARGE)

    assert time.thread_time() - began < 0.3


if __name__ == "__main__":
    a_number_without_an_end_takes_no_time()
    requests_are_read_as_protobuf_reads_them()
    answers_are_written_as_protobuf_writes_them()
