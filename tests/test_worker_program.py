"""A worker alone: it runs on every Python there is, and reads what MLflow's server reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from envd import config
from envd.build import Interpreter, Interpreters
from envd.run.envd_worker import protocol, reading, writing
from envd.run.envd_worker.refusals import Refused
from tests.worker_program import JSON, load_head, model, worker

BARE_1X = {"columns": ["x"], "index": [0, 1], "data": [[1], [2]]}


def _every_minor(tmp: Path) -> list[Interpreter]:
    found = Interpreters(config.load(root=tmp, environ={})).found()
    return list({one.python.minor: one for one in found}.values())


def test_it_answers_on_every_python_of_this_machine(tmp_path: Path) -> None:
    path = model(tmp_path / "model", "return [data]")
    interpreters = _every_minor(tmp_path / "root")

    for one in interpreters:
        with worker(one.path, cwd=tmp_path) as (talk, process):
            numbers = talk.send(
                (protocol.LOAD, load_head(path), b""),
                (protocol.PREDICT, JSON, b'{"inputs": [1, 2]}'),
            )
            loaded, answered = talk.hear(), talk.hear()

            assert loaded.kind == protocol.DONE, (one.python, loaded.head)
            assert loaded.head["pid"] == process.pid
            assert [loaded.number, answered.number] == numbers
            assert json.loads(answered.payload) == {"predictions": [[1, 2]]}, one.python
    assert len(interpreters) >= 1


@pytest.mark.parametrize(
    ("content_type", "payload", "table"),
    [
        ("application/json", {"dataframe_split": BARE_1X}, [{"x": 1}, {"x": 2}]),
        ("application/json", {"dataframe_records": [{"x": 1}]}, [{"x": 1}]),
        ("application/json", BARE_1X, [{"x": 1}, {"x": 2}]),
        ("application/json; format=pandas-split", BARE_1X, [{"x": 1}, {"x": 2}]),
        ("application/json; format=pandas-records", [{"x": 3}], [{"x": 3}]),
        ("text/csv", "x,y\n1,a\n", [{"x": 1, "y": "a"}]),
    ],
)
def test_tables_are_read_in_every_form(content_type: str, payload: object, table: object) -> None:
    text = payload if isinstance(payload, str) else json.dumps(payload)

    head = {"content_type": content_type}
    found = reading.read(head, text.encode(), reading.Metadata())

    assert found.data.to_dict(orient="records") == table
    assert found.params is None
    assert not found.is_chat


@pytest.mark.parametrize(
    "payload",
    [
        "[1, 2",
        "3",
        "{}",
        '{"inputs": 1, "instances": 2}',
        '{"inputs": 1, "params": [1]}',
        '{"dataframe_split": [1]}',
    ],
)
def test_what_is_no_input_is_refused(payload: str) -> None:
    with pytest.raises(Refused) as raised:
        reading.read(JSON, payload.encode(), reading.Metadata())

    assert raised.value.reason == "PAYLOAD_INVALID"


def test_answers_are_written_as_mlflow_writes_them() -> None:
    import datetime as dt

    import numpy as np
    import pandas as pd

    cases = [
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}), [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]),
        (pd.Series([1, 2], name="s"), [{"s": 1}, {"s": 2}]),
        ({"k": np.float32(0.5)}, {"k": 0.5}),
        (b"\x00\x01", "AAE=\n"),
        ([dt.date(2026, 1, 2), np.datetime64("2026-01-02")], ["2026-01-02", "2026-01-02"]),
        (pd.DataFrame({"a": [1.0, float("nan")]}), [{"a": 1.0}, {"a": None}]),
    ]

    for raw, written in cases:
        body, _ = writing.write(raw, is_chat=False, limit=1 << 20)
        assert json.loads(body) == {"predictions": written}
