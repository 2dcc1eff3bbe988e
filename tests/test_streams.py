"""Answers and inputs in parts, through a daemon: order, room, ends of every kind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
from envd_client import AsyncClient, Client
from envd_client.errors import (
    DeadlineExceededError,
    ModelRaisedError,
    PayloadTooLargeError,
    RequestInvalidError,
    RequestKillsWorkersError,
    ShuttingDownError,
    StreamUnsupportedError,
    WorkerDiedError,
)
from envd_client.v1 import envd_pb2 as api
from envd_client.v1 import envd_pb2_grpc as services

from envd import errors
from envd.run.pool import Pool
from envd.run.serving import Serving
from envd.serve.in_flight import InFlight
from envd.serve.predicting import received
from envd.settings import sections
from tests.conftest import Daemon, is_running, launch, stop, wait_for
from tests.stage import Stage, answer, request
from tests.taken import resident
from tests.tiny import Tiny

# Yields what it is told to, one expression after the other or one for ever, and appends to a
# file what it does; `number` counts, and `wait(path)` waits for a file.
BODY = """
        return eval(data, {"data": data}) if isinstance(data, str) else len(data)

    def predict_stream(self, data, params=None):
        import itertools, os, pathlib, time

        def wait(path):
            while not os.path.exists(path):
                time.sleep(0.005)

        def say(what):
            with open(data["log"], "a") as file:
                file.write(what + "\\n")

        say("begin %d" % os.getpid())
        try:
            items = data.get("items") or itertools.repeat(data.get("for_ever"))
            for number, item in enumerate(items):
                say("next %d" % number)
                yield eval(item)
        finally:
            say("over")
"""
MIB = 1 << 20


@pytest.fixture(scope="module")
def streaming(tmp_path_factory: pytest.TempPathFactory, home: Path, tiny: Tiny) -> Iterator[Daemon]:
    """A daemon with small limits, and which kills soon."""
    more = {
        "ENVD_WORKERS__STOP_GRACE": "300ms",
        "ENVD_DAEMON__MAX_MESSAGE": "1MiB",
        "ENVD_DAEMON__MAX_IN_PARTS": "8MiB",
    }
    found = launch(tmp_path_factory.mktemp("streams") / "root", home, **tiny.settings | more)
    yield found
    stop(found)


@pytest.fixture(scope="module")
def model(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.model(tmp_path_factory.mktemp("model") / "model", body=BODY)


@pytest.fixture
def client(streaming: Daemon) -> Iterator[Client]:
    with streaming.client(max_message_bytes=MIB) as client:
        yield client


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def given(log: Path, *items: str, for_ever: str = "") -> dict[str, object]:
    return {"inputs": {"log": str(log), "items": items, "for_ever": for_ever}}


def lines(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def is_over(log: Path) -> bool:
    return lines(log)[-1:] == ["over"]


def pid(log: Path) -> int:
    """Return the worker that began last."""
    return int([line for line in lines(log) if line.startswith("begin")][-1].split()[1])


def begun(log: Path) -> int:
    return sum(line.startswith("begin") for line in lines(log))


def test_items_come_in_order_with_how_they_came_about(
    client: Client, model: Path, log: Path
) -> None:
    stream = client.predict_stream(model, given(log, "1", "[float('nan')]", "'x' * 900_000", "4"))

    assert list(stream) == [1, [None], "x" * 900_000, 4]
    assert (stream.answer.payload, len(stream.answer.environment_id)) == (b"", 32)
    assert stream.answer.worker_origin in {"fresh", "warm"}
    assert {"build", "queue", "predict", "model"} <= stream.answer.stage_seconds.keys()
    assert "NAN_AS_NULL" in [note.code for note in stream.answer.notes]
    assert is_over(log)


def test_the_client_of_asyncio_does_the_same(streaming: Daemon, model: Path, log: Path) -> None:
    async def ask() -> None:
        async with AsyncClient(streaming.root / "predict.sock", max_message_bytes=MIB) as client:
            stream = client.predict_stream(model, given(log, "1", "'x' * 900_000", "3"))
            assert [item async for item in stream] == [1, "x" * 900_000, 3]
            async with client.predict_stream(model, given(log, for_ever="2")) as left:
                assert await anext(aiter(left)) == 2
            with pytest.raises(ModelRaisedError):
                [_ async for _ in client.predict_stream(model, given(log, "1 // 0"))]
            assert (await client.predict(model, {"inputs": [1] * MIB})).predictions == MIB

    asyncio.run(ask())
    wait_for(lambda: is_over(log))


def test_each_item_comes_when_it_is_there(client: Client, model: Path, tmp_path: Path) -> None:
    gates = [tmp_path / name for name in "abc"]
    stream = given(tmp_path / "log", "0", *(f"wait({str(gate)!r})" for gate in gates))
    items = iter(client.predict_stream(model, stream))

    assert next(items) == 0
    for gate in gates:
        gate.touch()
        assert next(items) is None
    assert list(items) == []


def test_a_slow_caller_makes_the_model_wait_and_costs_no_memory(
    client: Client, streaming: Daemon, model: Path, log: Path
) -> None:
    before = resident(streaming.pid)
    with client.predict_stream(model, given(log, for_ever="'x' * 1_000_000")) as stream:
        assert len(next(iter(stream))) == 1_000_000
        # A gigabyte, if nobody stopped it.
        stopped: list[int] = []
        while len(stopped) < 3 or len(set(stopped[-3:])) > 1:
            time.sleep(0.1)
            stopped.append(len(lines(log)))
        assert stopped[-1] < 20
        assert resident(streaming.pid) - before < 20 * MIB
        assert not is_over(log)
    wait_for(lambda: is_over(log))
    assert client.predict(model, {"inputs": [1]}).predictions == 1


def test_who_leaves_between_two_items_stops_the_model(
    client: Client, model: Path, log: Path
) -> None:
    with client.predict_stream(model, given(log, for_ever="time.sleep(0.01)")) as stream:
        next(iter(stream))
    wait_for(lambda: is_over(log))

    first = pid(log)
    assert list(client.predict_stream(model, given(log, "1"))) == [1]
    assert pid(log) == first


def test_who_takes_nothing_for_long_frees_the_worker(
    home: Path, tiny: Tiny, model: Path, tmp_path: Path
) -> None:
    more = {"ENVD_DAEMON__MAX_PAUSE": "300ms"}
    said = tmp_path / "said"
    with said.open("w") as file, contextlib.redirect_stderr(file):
        daemon = launch(tmp_path / "root", home, **tiny.settings | more)
    try:
        with daemon.client() as client:
            endless = given(tmp_path / "log", for_ever="'x' * 1_000_000")
            items = iter(client.predict_stream(model, endless))
            next(items)
            wait_for(lambda: is_over(tmp_path / "log"))
            assert client.predict(model, {"inputs": [1]}).predictions == 1
            with pytest.raises(DeadlineExceededError, match="max_pause"):
                list(items)
            # Nor is it told anything when it leaves instead.
            other = given(tmp_path / "other", for_ever="'x' * 1_000_000")
            with client.predict_stream(model, other) as stream:
                next(iter(stream))
                wait_for(lambda: is_over(tmp_path / "other"))
            assert client.predict(model, {"inputs": [1]}).predictions == 1
    finally:
        stop(daemon)
    assert said.read_text() == ""


def test_a_deadline_ends_a_stream_and_the_model(client: Client, model: Path, log: Path) -> None:
    stream, items = (
        client.predict_stream(model, given(log, for_ever="time.sleep(0.01)"), timeout_s=0.5),
        [],
    )
    with pytest.raises(DeadlineExceededError):
        items.extend(stream)  # type: ignore[arg-type]
    wait_for(lambda: is_over(log))
    assert lines(log)[1] == "next 0"


def test_who_is_stuck_in_an_item_is_replaced_when_nobody_waits(
    client: Client, model: Path, log: Path
) -> None:
    with client.predict_stream(model, given(log, "1", "time.sleep(600)")) as stream:
        next(iter(stream))
        wait_for(lambda: lines(log)[-1:] == ["next 1"])
    wait_for(lambda: not is_running(pid(log)), 20)
    assert list(client.predict_stream(model, given(log, "1"))) == [1]


def test_a_death_comes_after_the_items_and_nothing_is_asked_again(
    streaming: Daemon, tiny: Tiny, tmp_path: Path, log: Path
) -> None:
    model = tiny.model(tmp_path / "model", body=BODY)
    dies = given(log, "1", "'x' * 900_000", "os._exit(7)")
    with streaming.client(retries=5) as client:
        items = iter(client.predict_stream(model, dies))
        assert [next(items), next(items)] == [1, "x" * 900_000]
        with pytest.raises(WorkerDiedError) as raised:
            next(items)
        assert raised.value.metadata["cause"] == "exit 7"
        assert begun(log) == 1
        # Once may be chance.
        for _ in range(2):
            with pytest.raises(RequestKillsWorkersError):
                list(client.predict_stream(model, dies))
    assert begun(log) == 2


def test_what_the_model_raises_comes_after_the_items(
    client: Client, model: Path, log: Path
) -> None:
    stream = iter(client.predict_stream(model, given(log, "1", "1 // 0")))

    assert next(stream) == 1
    with pytest.raises(ModelRaisedError, match="ZeroDivisionError") as raised:
        next(stream)
    assert raised.value.metadata["model"] == str(model)
    assert client.predict(model, {"inputs": [1]}).predictions == 1


def test_a_model_without_a_stream_says_so(client: Client, tiny: Tiny, tmp_path: Path) -> None:
    plain = tiny.model(tmp_path / "plain")

    with pytest.raises(StreamUnsupportedError) as raised:
        list(client.predict_stream(plain, {"inputs": [1]}))
    assert (raised.value.code, raised.value.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "STREAM_UNSUPPORTED",
    )
    # That says nothing of its worker.
    assert client.predict(plain, {"inputs": [1]}).worker_origin == "warm"


def test_an_item_that_is_larger_than_a_message_is_refused(
    client: Client, model: Path, log: Path
) -> None:
    with pytest.raises(PayloadTooLargeError, match="max_message"):
        list(client.predict_stream(model, given(log, f"'x' * {2 * MIB}")))
    assert is_over(log)


def test_what_is_larger_than_a_message_goes_in_parts(client: Client, model: Path) -> None:
    text = "x" * (3 * MIB)
    assert client.predict(model, {"inputs": {"a": text}}).predictions == 1
    answer = client.predict(model, {"inputs": f"'{text}'"})

    assert answer.predictions == text
    assert (answer.content_type, answer.worker_origin) == ("application/json", "warm")
    assert client.predict(model, {"inputs": "'x' * 3 * 1024 * 1024"}, in_parts=True).payload == (
        answer.payload
    )
    with pytest.raises(PayloadTooLargeError, match="max_message"):
        client.predict(model, {"inputs": "'x' * 3 * 1024 * 1024"})


def test_too_large_an_input_or_answer_is_refused(client: Client, model: Path) -> None:
    with pytest.raises(PayloadTooLargeError, match="max_in_parts"):
        client.predict(model, {"inputs": "x" * (9 * MIB)})
    with pytest.raises(PayloadTooLargeError, match="max_in_parts"):
        client.predict(model, {"inputs": f"'x' * {9 * MIB}"}, in_parts=True)


def test_who_leaves_within_an_input_asks_nothing(
    streaming: Daemon, client: Client, model: Path, log: Path
) -> None:
    # Which would do as it is.
    payload = json.dumps(given(log, "1")).encode()
    asked = api.PredictRequest(model=str(model), payload=payload)
    has_left = threading.Event()

    def messages() -> Iterator[api.PredictStreamRequest]:
        yield api.PredictStreamRequest(request=asked, function="PREDICT_STREAM")
        has_left.wait(60)

    with grpc.insecure_channel(f"unix:{streaming.root}/predict.sock") as channel:
        calls = [services.PredictionsStub(channel).PredictStream(messages()) for _ in range(20)]
        time.sleep(0.1)
        for call in calls:
            call.cancel()
        has_left.set()
        assert client.predict(model, {"inputs": [1]}).predictions == 1
    assert begun(log) == 0


def test_an_input_that_does_not_go_on_is_not_held_for_ever() -> None:
    in_flight = InFlight(sections.Daemon())

    async def parts() -> AsyncIterator[bytes]:
        yield b"34"
        await asyncio.sleep(60)
        yield b"56"

    async def take() -> None:
        with in_flight.share() as share:
            share.add(2)
            with pytest.raises(errors.DeadlineExceededError):
                await received(b"12", parts(), share, pause_s=0.05)
            assert in_flight.bytes == 4

    asyncio.run(take())
    assert in_flight.bytes == 0


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [api.PredictStreamRequest(payload=b"1")],
        [api.PredictStreamRequest(request=api.PredictRequest(model="m"))],
        [api.PredictStreamRequest(request=api.PredictRequest(model="m"), function=1)],
        [api.PredictStreamRequest(request=api.PredictRequest(model="m"), function=1)] * 2,
    ],
)
def test_messages_that_make_no_request_are_refused(
    streaming: Daemon, model: Path, messages: list[api.PredictStreamRequest]
) -> None:
    for one in messages:
        if one.HasField("request"):
            one.request.model = str(model)
    with grpc.insecure_channel(f"unix:{streaming.root}/predict.sock") as channel:
        call = services.PredictionsStub(channel).PredictStream(iter(messages))
        with pytest.raises(grpc.RpcError) as raised:
            list(call)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "text", ["[1", "[1]", '{"a": %s}' % ("[" * 970 + "]" * 970), " " * (1 << 19) + "{}"]
)
@pytest.mark.parametrize("field", ["params_json", "model_config_json"])
def test_params_that_are_none_are_refused(
    streaming: Daemon, model: Path, field: str, text: str
) -> None:
    request = api.PredictRequest(model=str(model), payload=b'{"inputs": 1}', **{field: text})
    with (
        grpc.insecure_channel(f"unix:{streaming.root}/predict.sock") as channel,
        pytest.raises(grpc.RpcError, match=f"`{field}` is (n|524290)") as raised,
    ):
        services.PredictionsStub(channel).Predict(request)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_tensors_are_no_content_type_of_predict(client: Client, model: Path) -> None:
    with pytest.raises(RequestInvalidError, match="Open Inference Protocol"):
        client.predict(model, b"\0\0\0\2{}", content_type="application/x-envd-tensors")


def test_a_daemon_that_stops_lets_streams_end_or_says_why_not(
    home: Path, tiny: Tiny, model: Path, tmp_path: Path
) -> None:
    first = given(tmp_path / "ends", "1", f"wait({str(tmp_path / 'go')!r})")
    second = given(tmp_path / "goes on", for_ever="time.sleep(0.01)")
    more = {"ENVD_DAEMON__DRAIN": "1s", "ENVD_WORKERS__PER_MODEL": "2"}
    daemon = launch(tmp_path / "root", home, **tiny.settings | more)
    try:
        with daemon.client() as client:
            ends = iter(client.predict_stream(model, first))
            goes_on = iter(client.predict_stream(model, second))
            assert [next(ends), next(goes_on)] == [1, None]
            daemon.process.send_signal(signal.SIGTERM)
            with pytest.raises(ShuttingDownError):
                list(client.predict_stream(model, given(tmp_path / "late", "1")))
            (tmp_path / "go").touch()
            assert list(ends) == [None]
            with pytest.raises(ShuttingDownError):
                list(goes_on)
            assert daemon.process.wait(20) == 0
        assert is_over(tmp_path / "goes on")
    finally:
        stop(daemon)


# Who waits for whom.


def test_two_streams_at_once_are_two_workers(stage: Stage, tmp_path: Path) -> None:
    model, environment = stage.model("streams", BODY)
    ready = [f"pathlib.Path({str(tmp_path / one)!r}).touch()" for one in "ab"]
    other = [f"wait({str(tmp_path / one)!r})" for one in "ba"]

    async def play(pool: Pool) -> None:
        async def ask(place: int) -> int:
            items = given(tmp_path / f"log{place}", ready[place], other[place])["inputs"]
            stream = await pool.stream(
                model, environment, request(items), "predict_stream", Serving(workers=2)
            )
            count = len([part async for part in stream])
            stream.close()
            return count

        assert await asyncio.gather(ask(0), ask(1)) == [2, 2]

    stage.run(play)
    assert pid(tmp_path / "log0") != pid(tmp_path / "log1")


@pytest.mark.parametrize("batch", [True, False])
def test_nobody_waits_behind_a_stream_while_another_worker_is_free(
    stage: Stage, tmp_path: Path, *, batch: bool
) -> None:
    model, environment = stage.model("streams", BODY)
    serving = Serving(workers=2, batch=batch)

    async def play(pool: Pool) -> None:
        items = given(tmp_path / "log", for_ever="1")["inputs"]
        stream = await pool.stream(model, environment, request(items), "predict_stream", serving)
        asking = [pool.predict(model, environment, request([1, 2]), serving) for _ in range(50)]
        assert {answer(one) for one in await asyncio.gather(*asking)} == {2}
        stream.close()

    stage.run(play)


def test_who_waits_behind_the_only_worker_is_answered_after_the_stream(
    stage: Stage, tmp_path: Path
) -> None:
    model, environment = stage.model("streams", BODY)
    go = tmp_path / "go"

    async def play(pool: Pool) -> None:
        items = given(tmp_path / "log", "1", f"wait({str(go)!r})")["inputs"]
        stream = await pool.stream(model, environment, request(items), "predict_stream")
        small = request([1])
        behind = [asyncio.ensure_future(pool.predict(model, environment, small)) for _ in "ab"]
        left = asyncio.ensure_future(pool.stream(model, environment, request(items), "predict"))
        await asyncio.sleep(0.05)
        assert not any(one.done() for one in [*behind, left])
        left.cancel()
        go.touch()
        assert len([part async for part in stream]) == 2
        assert pool.ended(stream, model, environment).origin == "fresh"
        stream.close()
        assert [answer(one) for one in await asyncio.gather(*behind)] == [1, 1]

    stage.run(play)


# Sizes.


@pytest.mark.slow
def test_200_mb_go_through_a_daemon_that_holds_them_once(
    home: Path, tiny: Tiny, model: Path, tmp_path: Path
) -> None:
    daemon = launch(tmp_path / "root", home, **tiny.settings)
    before, most, is_done = resident(daemon.pid), [0], threading.Event()

    def watch() -> None:
        while not is_done.wait(0.01):
            most[0] = max(most[0], resident(daemon.pid))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        with daemon.client() as client:
            payload = b'{"inputs": {"a": "' + b"x" * (200 << 20) + b'"}}'
            for _ in range(3):
                assert client.predict(model, payload).predictions == 1
            for _ in range(3):
                with pytest.raises(ModelRaisedError):
                    client.predict(model, payload.replace(b'{"a": ', b"").replace(b"}}", b"}"))
    finally:
        is_done.set()
        watching.join()
        stop(daemon)
    assert most[0] - before < 300 * MIB
