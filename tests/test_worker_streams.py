"""A worker alone that answers in parts: what it sends, when it waits, how it stops."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from envd import config
from envd.build import Interpreters
from envd.run.envd_worker.inbox import Request
from envd.run.envd_worker.protocol import (
    BESIDE_BYTES,
    CANCEL,
    CREDIT,
    DONE,
    FAILED,
    HEADER,
    ITEM,
    LOAD,
    PART,
    PART_BYTES,
    STREAM,
    WINDOW_BYTES,
)
from tests.conftest import wait_for
from tests.worker_program import JSON, Talk, load_head, model, worker

# Yields so many times what it is told to, says so in its log before, and how that ended.
PREDICTS = "return eval(data)"
SAYS = """
def predict_stream(self, data, params=None):
    count, what = data
    try:
        for number in range(count):
            print("next", number, params, flush=True)
            yield eval(what)
    finally:
        print("over", flush=True)
"""


@pytest.fixture
def talk(tmp_path: Path) -> Iterator[Talk]:
    with worker(sys._base_executable, cwd=tmp_path, log=tmp_path / "log") as (talk, _):
        talk.load(model(tmp_path / "model", PREDICTS, methods=SAYS))
        yield talk


def ask(talk: Talk, given: object, function: str = "predict_stream", **more: object) -> int:
    """Ask for an answer in parts and return the id of the request."""
    head = JSON | {"function": function, "limit": 1 << 30, "setting": "the.limit"} | more
    (number,) = talk.send((STREAM, head, json.dumps({"inputs": given}).encode()))
    return number


def say(talk: Talk, number: int, kind: int, head: str = "") -> None:
    """Say something of a request that has been sent."""
    talk.connection.sendall(HEADER.pack(0, number, kind, len(head)) + head.encode())


def hear(talk: Talk, number: int) -> tuple[list[Any], Request]:
    """Return the items as there is room for them, and the frame that ends them."""
    items, parts = [], b""
    while (frame := talk.hear()).kind not in {DONE, FAILED}:
        assert frame.number == number
        say(talk, number, CREDIT, json.dumps({"bytes": len(frame.payload) + BESIDE_BYTES}))
        parts += bytes(frame.payload)
        if frame.kind == ITEM:
            items.append(json.loads(parts))
            parts = b""
    assert not parts or frame.kind == FAILED
    return items, frame


def said(folder: Path) -> Sequence[str]:
    return (folder / "log").read_text().splitlines()


def test_items_come_in_order_on_every_python_of_this_machine(tmp_path: Path) -> None:
    path = model(tmp_path / "model", PREDICTS, methods=SAYS)
    found = Interpreters(config.load(root=tmp_path / "root", environ={})).found()
    for one in {one.python.minor: one for one in found}.values():
        with worker(one.path, cwd=tmp_path, log=tmp_path / "log") as (talk, _):
            talk.send((LOAD, load_head(path), b""))
            assert talk.hear().kind == DONE, one.python
            items, end = hear(talk, ask(talk, [3, "number"]))
            assert (items, end.kind) == ([0, 1, 2], DONE), (one.python, end.head)


def test_an_item_is_what_the_model_yields_and_no_more(talk: Talk, tmp_path: Path) -> None:
    items, end = hear(talk, ask(talk, [1, '{"a": [b"x", None]}'], params={"a": 1}))

    assert items == [{"a": ["eA==\n", None]}]
    assert (end.kind, end.head["notes"]) == (DONE, [])
    assert said(tmp_path) == ["next 0 {'a': 1}", "over"]


def test_what_is_no_number_is_null_with_one_note_for_all(talk: Talk) -> None:
    items, end = hear(talk, ask(talk, [3, "[float('nan'), number]"]))

    assert items == [[None, 0], [None, 1], [None, 2]]
    assert [one["code"] for one in end.head["notes"]] == ["NAN_AS_NULL"]


def test_a_large_item_comes_in_parts_as_there_is_room(talk: Talk) -> None:
    number = ask(talk, [1, f"'x' * {3 * WINDOW_BYTES}"])
    room = WINDOW_BYTES // (PART_BYTES + BESIDE_BYTES)
    first = [talk.hear() for _ in range(room)]

    assert [(one.kind, len(one.payload)) for one in first] == [(PART, PART_BYTES)] * room
    assert not select.select([talk.connection], [], [], 0.05)[0]
    say(talk, number, CREDIT, json.dumps({"bytes": room * (PART_BYTES + BESIDE_BYTES)}))
    parts = b"".join(bytes(one.payload) for one in first)
    while (frame := talk.hear()).kind != ITEM:
        parts += bytes(frame.payload)
        say(talk, number, CREDIT, json.dumps({"bytes": PART_BYTES + BESIDE_BYTES}))
    assert json.loads(parts + bytes(frame.payload)) == "x" * 3 * WINDOW_BYTES
    assert talk.hear().kind == DONE


@pytest.mark.parametrize("size", [1, PART_BYTES])
def test_without_room_the_model_waits_until_nobody_wants_it(
    talk: Talk, size: int, tmp_path: Path
) -> None:
    number = ask(talk, [1_000_000, f"'x' * {size}"])
    frames = -(-(size + 2) // PART_BYTES)
    most = WINDOW_BYTES // (size + 2 + frames * BESIDE_BYTES)
    for _ in range(most * frames):
        assert talk.hear().number == number
    wait_for(lambda: len(said(tmp_path)) == most + 1)
    say(talk, number, CANCEL)

    end = talk.hear()
    assert (end.kind, end.head["reason"]) == (FAILED, "CANCELLED")
    assert said(tmp_path)[most:] == [f"next {most} None", "over"]
    assert hear(talk, ask(talk, [1, "7"]))[0] == [7]


def test_what_is_cancelled_before_its_turn_is_not_begun(talk: Talk, tmp_path: Path) -> None:
    head = JSON | {"function": "predict_stream", "limit": 100, "setting": ""}
    text = json.dumps(head).encode()
    payload = b'{"inputs": [3, "number"]}'
    frame = HEADER.pack(len(payload), 7, STREAM, len(text)) + text + payload
    talk.connection.sendall(frame + HEADER.pack(0, 7, CANCEL, 0))

    end = talk.hear()
    assert (end.number, end.kind, end.head["reason"]) == (7, FAILED, "CANCELLED")
    assert said(tmp_path) == []


def test_a_cancel_is_seen_between_two_items(talk: Talk, tmp_path: Path) -> None:
    number = ask(talk, [1_000_000, "__import__('time').sleep(0.001)"])
    talk.hear()
    say(talk, number, CANCEL)
    items, end = hear(talk, number)

    assert end.head["reason"] == "CANCELLED"
    assert len(items) < 1000
    assert said(tmp_path)[-1] == "over"


def test_what_the_model_raises_midway_comes_after_its_items(talk: Talk, tmp_path: Path) -> None:
    items, end = hear(talk, ask(talk, [9, "1 // (2 - number)"]))

    assert items == [0, 1]
    assert (end.kind, end.head["reason"]) == (FAILED, "MODEL_RAISED")
    assert "ZeroDivisionError" in end.head["message"]
    assert "predict_stream" in end.head["metadata"]["traceback"]
    assert said(tmp_path)[-1] == "over"


@pytest.mark.parametrize("what", ["object()", "'x' * 200"])
def test_an_item_that_cannot_be_sent_ends_the_model(talk: Talk, what: str, tmp_path: Path) -> None:
    items, end = hear(talk, ask(talk, [9, f"number if number < 2 else {what}"], limit=100))

    assert items == [0, 1]
    assert end.head["reason"] in {"MODEL_RAISED", "PAYLOAD_TOO_LARGE"}
    assert said(tmp_path)[-2:] == ["next 2 None", "over"]


def test_an_answer_of_predict_comes_in_parts_as_one_item(talk: Talk) -> None:
    items, end = hear(talk, ask(talk, f"'x' * {5 << 20}", "predict"))

    assert items == [{"predictions": "x" * (5 << 20)}]
    assert end.kind == DONE
    items, end = hear(talk, ask(talk, "'x' * 200", "predict", limit=100))
    assert (items, end.head["reason"]) == ([], "PAYLOAD_TOO_LARGE")
    assert "the.limit" in end.head["message"]


@pytest.mark.parametrize(
    ("methods", "reason"),
    [
        ("", "STREAM_UNSUPPORTED"),
        ("_predict_stream_fn = None\npredict_stream = predict", "STREAM_UNSUPPORTED"),
        ("def predict_stream(self, data): raise NotImplementedError('none')", "STREAM_UNSUPPORTED"),
        ("def predict_stream(self, data): return 7", "MODEL_RAISED"),
        ("def predict_stream(self, data): return map(int, 'ab')", "MODEL_RAISED"),
        ("def predict_stream(self, data):\n    import nosuch\n    yield 1", "IMPORT_FAILED"),
    ],
)  # fmt: skip
def test_a_model_that_does_not_stream_says_so(tmp_path: Path, methods: str, reason: str) -> None:
    with worker(sys._base_executable, cwd=tmp_path) as (talk, _):
        talk.load(model(tmp_path / "model", methods=methods))
        items, end = hear(talk, ask(talk, [1]))

    assert (items, end.kind, end.head["reason"]) == ([], FAILED, reason)


@pytest.mark.parametrize("body", ["return iter([1, 2])", "return [1, 2]", "yield from (1, 2)"])
def test_any_iterable_is_a_stream(tmp_path: Path, body: str) -> None:
    with worker(sys._base_executable, cwd=tmp_path) as (talk, _):
        methods = f"def predict_stream(self, data):\n    {body}"
        talk.load(model(tmp_path / "model", methods=methods))
        assert hear(talk, ask(talk, [1]))[0] == [1, 2]


def test_a_model_that_will_not_stop_is_told_so_in_its_log(tmp_path: Path) -> None:
    stubborn = """
def predict_stream(self, data):
    while True:
        try:
            yield 1
        except GeneratorExit:
            pass
"""
    with worker(sys._base_executable, cwd=tmp_path, log=tmp_path / "log") as (talk, _):
        talk.load(model(tmp_path / "model", methods=stubborn))
        number = ask(talk, [])
        talk.hear()
        say(talk, number, CANCEL)
        assert hear(talk, number)[1].head["reason"] == "CANCELLED"
        assert talk.predict({"inputs": [1]}) == [1]
    assert "generator ignored GeneratorExit" in (tmp_path / "log").read_text()


_SAVE = """
import mlflow, sys
from mlflow.models import ModelSignature
from mlflow.pyfunc import ChatAgent, ChatModel, PythonModel, ResponsesAgent
from mlflow.types.agent import ChatAgentChunk, ChatAgentMessage, ChatAgentResponse
from mlflow.types.llm import (
    ChatChoice, ChatChoiceDelta, ChatChunkChoice, ChatCompletionChunk, ChatCompletionResponse,
    ChatMessage,
)
from mlflow.types.responses import ResponsesAgentResponse, ResponsesAgentStreamEvent
from mlflow.types.schema import ColSpec, ParamSchema, ParamSpec, Schema

class Plain(PythonModel):
    def predict(self, context, model_input, params=None):
        return model_input

class Streams(Plain):
    def predict_stream(self, context, model_input, params=None):
        yield {"given": model_input}
        yield params

class SilentChat(ChatModel):
    def predict(self, context, messages, params):
        return ChatCompletionResponse([ChatChoice(ChatMessage("assistant", "a"))])

class Chat(SilentChat):
    def predict_stream(self, context, messages, params):
        for word in messages[-1].content.split():
            yield ChatCompletionChunk([ChatChunkChoice(ChatChoiceDelta("assistant", word))])

class Agent(ChatAgent):
    def predict(self, messages, context=None, custom_inputs=None):
        said = ChatAgentMessage(role="assistant", content="a", id="1")
        return ChatAgentResponse(messages=[said])

    def predict_stream(self, messages, context=None, custom_inputs=None):
        for word in messages[-1].content.split():
            said = ChatAgentMessage(role="assistant", content=word, id="1")
            yield ChatAgentChunk(delta=said)

class Responses(ResponsesAgent):
    def predict(self, request):
        return ResponsesAgentResponse(output=[])

    def predict_stream(self, request):
        for word in request.input[-1].content.split():
            kind = "response.output_text.delta"
            yield ResponsesAgentStreamEvent(
                type=kind, delta=word, item_id="1", output_index=0, content_index=0
            )

params = ParamSchema([ParamSpec("n", "long", 1)])
signature = ModelSignature(Schema([ColSpec("string", "q")]), params=params)
for one in (Plain, Streams, SilentChat, Chat, Agent, Responses):
    more = {"signature": signature} if one is Streams else {}
    path = sys.argv[1] + one.__name__
    mlflow.pyfunc.save_model(path, python_model=one(), pip_requirements=["mlflow"], **more)
"""


@pytest.mark.slow
def test_mlflows_models_stream_as_mlflow_has_them(tmp_path: Path) -> None:
    env = {"HOME": str(tmp_path), "MLFLOW_DISABLE_TELEMETRY": "true"}
    subprocess.run([sys.executable, "-c", _SAVE, f"{tmp_path}/"], env=env, cwd=tmp_path, check=True)
    says = [{"role": "user", "content": "two words"}]

    with worker(cwd=tmp_path, env=env) as (talk, _):

        def told(name: str, **document: object) -> tuple[list[Any], str]:
            talk.load(tmp_path / name, loader_module="mlflow.pyfunc.model")
            head = JSON | {"function": "predict_stream", "limit": 1 << 20, "setting": ""}
            (number,) = talk.send((STREAM, head, json.dumps(document).encode()))
            items, end = hear(talk, number)
            return items, end.head.get("reason", "")

        given: dict[str, Any] = {"inputs": {"q": "hello"}, "params": {"n": 2}}
        assert told("Streams", **given) == ([{"given": {"q": "hello"}}, {"n": 2}], "")
        assert told("Streams", inputs={"z": "hello"}) == ([], "PAYLOAD_INVALID")
        assert told("Plain", inputs=["hello"]) == ([], "STREAM_UNSUPPORTED")
        assert told("SilentChat", messages=says) == ([], "STREAM_UNSUPPORTED")
        assert told("Chat", messages=7) == ([], "PAYLOAD_INVALID")
        items, _ = told("Chat", messages=says, stream=True)
        assert [one["choices"][0]["delta"]["content"] for one in items] == ["two", "words"]
        items, _ = told("Agent", messages=says)
        assert [one["delta"]["content"] for one in items] == ["two", "words"]
        items, _ = told("Responses", input=says)
        assert [one["delta"] for one in items] == ["two", "words"]
