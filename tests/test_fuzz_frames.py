"""The frames between the daemon and a worker, however they are cut, and what no worker sends.

A worker runs code of strangers, which may write anything into its socket: the daemon ends it
then, and whoever waits for it hears so, once. `ENVD_FUZZ=N` tries N times as many.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import strategies as st

from envd.errors import EnvdError
from envd.run.channel import Buffer, Channel
from envd.run.envd_worker import protocol
from envd.run.envd_worker.inbox import Inbox
from envd.run.envd_worker.protocol import BEGUN, DONE, FAILED, HEADER, ITEM, PART, PREDICT
from tests.fuzzing import tried

FEW, MANY = 200, 20 * 200
MOST_BYTES = 1 << 12
TRIES = pytest.mark.parametrize("tries", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
# What is nearly right gets further than noise.
heads = (
    values
    | st.fixed_dictionaries(
        {},
        optional={
            "ids": st.lists(st.integers(0, 4)) | values,
            "reason": st.sampled_from(["MODEL_RAISED", "WORKER_DIED", "INTERNAL"]) | values,
            "message": st.text(max_size=5) | values,
            "metadata": st.dictionaries(st.text(max_size=5), st.text(max_size=5)) | values,
            "retry_after_s": st.floats() | values,
        },
    )
).map(lambda head: json.dumps(head).encode())
numbers = st.integers(0, 4) | st.integers(0, 0xFFFFFFFF)
kinds = st.sampled_from([DONE, FAILED, BEGUN, PART, ITEM]) | st.integers(0, 255)


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    head, payload = draw(heads | st.binary(max_size=20)), draw(st.binary(max_size=30))
    sizes = st.just(len(payload)) | st.integers(0, 50) | st.integers(0, (1 << 64) - 1)
    head_sizes = st.just(len(head)) | st.integers(0, 50) | st.integers(0, (1 << 32) - 1)
    header = HEADER.pack(draw(sizes), draw(numbers), draw(kinds), draw(head_sizes))
    return header + head + payload


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(ends)]


@dataclass
class Hearing:
    """A caller that remembers what it heard."""

    ends: list[object] = field(default_factory=list)
    parts: list[bytes] = field(default_factory=list)

    def part(self, payload: Buffer, *, ends: bool) -> None:
        del ends
        assert not self.ends
        self.parts.append(bytes(payload))

    def answered(self, head: dict[str, Any], payload: Buffer) -> None:
        self.ends.append((head, bytes(payload)))

    def refused(self, error: EnvdError) -> None:
        self.ends.append(error)

    def lost(self, *, is_begun: bool) -> None:
        self.ends.append(is_begun)


async def _heard(chunks: Sequence[bytes]) -> list[Hearing]:
    """Return what three callers hear when a worker sends *chunks* and ends."""
    wrong: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, about: wrong.append(about))
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)  # noqa: FBT003
    with theirs:
        channel = await Channel.over(ours, MOST_BYTES)
        callers = [Hearing(), Hearing(), Hearing()]
        for caller in callers:
            channel.send(PREDICT, b"{}", b"", caller)
        for chunk in chunks:
            try:
                await loop.sock_sendall(theirs, chunk)
            except ConnectionError:
                break
            await asyncio.sleep(0)
        theirs.shutdown(socket.SHUT_RDWR)
        await asyncio.wait_for(channel.closed, 30)
    assert wrong == []
    assert channel.under_way == 0
    return callers


@TRIES
def test_whatever_a_worker_sends_every_caller_hears_one_end(tries: int) -> None:
    anything = st.lists(frames() | st.binary(max_size=40), max_size=6).map(b"".join)
    with asyncio.Runner() as runner:

        def heard(given: tuple[bytes, list[int]]) -> None:
            callers = runner.run(_heard(cut(*given)))
            assert [len(one.ends) for one in callers] == [1, 1, 1]

        tried(tries, st.tuples(anything, st.lists(st.integers(0, 300), max_size=5)), heard)


sizes = st.sampled_from([0, 1, 20, 2_000, (1 << 16) - 30, 1 << 16, (1 << 16) + 1, 1 << 18])
payloads = sizes.map(lambda size: bytes(range(256)) * (size // 256) + b"x" * (size % 256))


@TRIES
def test_answers_are_the_same_however_they_are_cut(tries: int) -> None:
    answers = st.lists(payloads, min_size=3, max_size=3)
    with asyncio.Runner() as runner:

        def heard(given: tuple[list[bytes], list[int]]) -> None:
            short = [one[: MOST_BYTES - 1] for one in given[0]]
            sent = b"".join(
                HEADER.pack(len(one), number, DONE, 2) + b"{}" + one
                for number, one in enumerate(short, 1)
            )
            callers = runner.run(_heard(cut(sent, given[1])))
            assert [one.ends for one in callers] == [[({}, one)] for one in short]

        tried(tries, st.tuples(answers, st.lists(st.integers(0, 1 << 16), max_size=8)), heard)


@TRIES
def test_requests_are_the_same_however_they_are_cut(tries: int) -> None:
    requests = st.lists(st.tuples(st.text(max_size=20), payloads), min_size=1, max_size=5)

    def taken(given: tuple[list[tuple[str, bytes]], list[int]]) -> None:
        sent = [(place, PREDICT, {"a": text}, data) for place, (text, data) in enumerate(given[0])]
        whole = bytearray()
        protocol.send(_Into(whole), sent)
        ours, theirs = socket.socketpair()

        def tell() -> None:
            for chunk in cut(bytes(whole), given[1]):
                theirs.sendall(chunk)

        with ours, theirs:
            teller = threading.Thread(target=tell)
            teller.start()
            inbox = Inbox(ours)
            found = [inbox.take() for _ in sent]
            teller.join()
            theirs.shutdown(socket.SHUT_WR)
            assert inbox.take() is None
        assert [(one.number, one.kind, one.head, bytes(one.payload)) for one in found] == sent

    tried(tries, st.tuples(requests, st.lists(st.integers(0, 1 << 17), max_size=8)), taken)


@dataclass
class _Into:
    """Keeps what is sent."""

    whole: bytearray

    def sendall(self, data: bytes) -> None:
        self.whole += data
