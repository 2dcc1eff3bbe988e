"""A stream of requests: how many are answered at once, in which order, and when it ends."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from envd.errors import DeadlineExceededError, ShuttingDownError
from envd.serve.oip import streaming
from tests.conftest import launch, one_python, stop
from tests.tiny import Tiny


class Asked:
    """Requests, and answers that come when they are let."""

    def __init__(self, count: int, *, is_endless: bool = False) -> None:
        self.count, self.read, self.is_endless = count, 0, is_endless
        self.begun: list[int] = []
        self.ended: list[int] = []
        self.cancelled: list[int] = []
        self.let = [asyncio.Event() for _ in range(count)]
        self.draining = asyncio.Event()

    async def requests(self) -> AsyncIterator[int]:
        for number in range(self.count):
            self.read += 1
            yield number
        if self.is_endless:
            await asyncio.Event().wait()

    async def answer(self, number: int) -> None:
        self.begun.append(number)
        try:
            await self.let[number].wait()
        except asyncio.CancelledError:
            self.cancelled.append(number)
            raise
        self.ended.append(number)

    def start(self) -> asyncio.Task[None]:
        return asyncio.create_task(streaming.each(self.requests(), self.answer, self.draining))


async def _settle() -> None:
    for _ in range(100):
        await asyncio.sleep(0)


def test_each_is_answered_when_it_is_ready_and_no_more_are_read_than_64() -> None:
    async def play() -> None:
        asked = Asked(100)
        task = asked.start()
        await _settle()
        assert (len(asked.begun), asked.read) == (64, 65)
        for number in (40, 3):
            asked.let[number].set()
        await _settle()
        assert asked.ended == [40, 3]
        assert (len(asked.begun), asked.read) == (66, 67)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(asked.cancelled) == 64

    asyncio.run(play())


def test_it_ends_when_all_that_was_asked_is_answered() -> None:
    async def play(count: int) -> list[int]:
        asked = Asked(count)
        for one in asked.let:
            one.set()
        await asked.start()
        return sorted(asked.ended)

    assert asyncio.run(play(100)) == list(range(100))
    assert asyncio.run(play(0)) == []


def test_a_daemon_that_stops_answers_what_it_was_asked_and_then_ends_the_stream() -> None:
    async def play() -> None:
        asked = Asked(1, is_endless=True)
        task = asked.start()
        await _settle()
        asked.draining.set()
        await _settle()
        assert not task.done()
        asked.let[0].set()
        with pytest.raises(ShuttingDownError):
            await task
        assert asked.ended == [0]

    asyncio.run(play())


def test_what_cannot_be_answered_ends_it_for_all() -> None:
    async def play() -> None:
        asked = Asked(3, is_endless=True)

        async def fail(number: int) -> None:
            if number == 1:
                message = "nobody takes anything"
                raise DeadlineExceededError(message)
            await asked.answer(number)

        with pytest.raises(DeadlineExceededError):
            await streaming.each(asked.requests(), fail, asked.draining)
        assert sorted(asked.cancelled) == [0, 2]

    asyncio.run(play())


def test_an_open_stream_does_not_keep_a_daemon(tmp_path: Path, home: Path, tiny: Tiny,
                                               tools: Path) -> None:  # fmt: skip
    model = tiny.model(tmp_path / "model")
    file = tmp_path / "envd.toml"
    file.write_text(f'[models]\nechoes = "{model}"\n')
    settings = {**tiny.settings, **one_python(tools), "ENVD_CONFIG": str(file)}
    daemon = launch(tmp_path / "root", home, **settings)
    is_over = threading.Event()

    def requests():
        request = service_pb2.ModelInferRequest(model_name="echoes", id="1")
        one = request.inputs.add(name="x", datatype="INT64", shape=[1])
        one.contents.int64_contents.append(7)
        yield request
        is_over.wait(60)

    try:
        with grpc.insecure_channel(f"unix:{daemon.root}/predict.sock") as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            answers = stub.ModelStreamInfer(requests())
            first = next(answers)
            daemon.process.send_signal(signal.SIGTERM)
            with pytest.raises(grpc.RpcError) as raised:
                next(answers)
            is_over.set()
        daemon.process.communicate(timeout=20)
    finally:
        stop(daemon)

    assert first.infer_response.id == "1"
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "the daemon is stopping" in raised.value.details()
    assert daemon.process.returncode == 0
