"""Payloads beside their messages: the bytes are those that protobuf reads and writes."""

from __future__ import annotations

import contextlib
import time

import pytest
from envd_client.v1 import envd_pb2 as api
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as some

from envd.serve import large

LARGE = 1 << 18
_SIZES = some.sampled_from([0, 1, 127, 128, LARGE - 100, LARGE, LARGE + 1, 3 * LARGE])
_REQUESTS = some.builds(
    api.PredictRequest,
    model=some.text(max_size=3),
    content_type=some.text(max_size=200),
    params_json=some.text(max_size=3),
    wait=some.none() | some.booleans(),
    pip_requirements_override=some.lists(some.text(max_size=3), max_size=2),
)


@given(message=_REQUESTS, size=_SIZES)
def test_a_request_is_read_with_its_payload_beside_it(message, size) -> None:
    message.payload = b"x" * size

    found = large.request(message.SerializeToString())

    assert found.payload == message.payload
    found.message.payload = bytes(found.payload)
    assert found.message == message


@given(
    message=_REQUESTS,
    size=_SIZES,
    extra=some.binary(max_size=8) | some.just(b"\x12\x01a"),
    cut=some.integers(0, 40),
    at=some.integers(0, 40),
    byte=some.integers(0, 255),
)
def test_what_protobuf_reads_is_read_alike_and_what_it_does_not_is_refused(
    message, size, extra, cut, at, byte
) -> None:
    message.payload = b"x" * size
    encoded = bytearray(message.SerializeToString() + extra)
    encoded[at : at + 1] = bytes([byte])
    encoded = bytes(encoded[: len(encoded) - cut])
    try:
        expected = api.PredictRequest.FromString(encoded)
    except DecodeError:
        expected = None
    try:
        found = large.request(encoded)
        found.message.payload = bytes(found.payload)
    except DecodeError:
        found = None

    assert bool(found) == bool(expected)
    assert found is None or found.message == expected


_SMALL, _LARGE = (api.PredictRequest(payload=b"x" * size) for size in (1, 2 * LARGE))


@pytest.mark.parametrize(
    "encoded",
    [
        _SMALL.SerializeToString() + _LARGE.SerializeToString(),
        _LARGE.SerializeToString() + _SMALL.SerializeToString(),
        _LARGE.SerializeToString() + b"\x12\x00",
    ],
    ids=["small-large", "large-small", "large-none"],
)
def test_of_two_payloads_the_last_is_taken(encoded: bytes) -> None:
    assert large.request(encoded).payload == api.PredictRequest.FromString(encoded).payload


@pytest.mark.parametrize("encoded", [b"\x28" + b"\xff" * 2 * LARGE, b"\x28\x00" * 16 * LARGE])
def test_what_is_hostile_takes_no_longer_than_protobuf_does(encoded: bytes) -> None:
    began = time.thread_time()
    with contextlib.suppress(DecodeError):
        large.request(encoded)

    assert time.thread_time() - began < 0.3


@given(size=_SIZES, environment=some.text(max_size=3))
def test_an_answer_is_written_with_its_payload_in_it(size, environment) -> None:
    laden = large.Laden(api.PredictResponse(environment_id=environment), bytearray(size))

    encoded = large.response(laden)

    assert large.size(laden) == len(encoded)
    found = api.PredictResponse.FromString(encoded)
    assert (found.payload, found.environment_id) == (bytes(size), environment)
