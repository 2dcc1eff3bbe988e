"""worker.py alone: it runs on every Python there is, and reads what MLflow's server reads."""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path

import pytest

from envd import config
from envd.build import Interpreter, Interpreters
from envd.run import worker

BARE_1X = {"columns": ["x"], "index": [0, 1], "data": [[1], [2]]}


def _every_minor(tmp: Path) -> list[Interpreter]:
    found = Interpreters(config.load(root=tmp, environ={})).found()
    return list({one.python.minor: one for one in found}.values())


def test_it_answers_on_every_python_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "loader.py").write_text(
        "def _load_pyfunc(path):\n    return Model()\n\n\n"
        "class Model:\n    def predict(self, data):\n        return [data]\n"
    )
    interpreters = _every_minor(tmp_path / "root")

    for one in interpreters:
        with _Started(one.path, tmp_path) as connection:
            worker.send(connection, 1, worker.LOAD, _load(tmp_path), b"")
            loaded = worker.receive(connection)
            worker.send(connection, 2, worker.PREDICT, _json(), b'{"inputs": [1, 2]}')
            answered = worker.receive(connection)

            assert loaded[1] == worker.DONE, (one.python, loaded)
            assert answered[:2] == (2, worker.DONE), (one.python, answered)
            assert json.loads(answered[3])["predictions"][0] == [1, 2]
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

    data, params, is_chat = worker._input(text.encode(), content_type, worker.Metadata())

    assert data.to_dict(orient="records") == table
    assert params is None
    assert not is_chat


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
    class Echo:
        def predict(self, data: object) -> object:
            return data

    with pytest.raises(worker.Refused) as raised:
        worker.predict(Echo(), _json(), payload.encode(), 1 << 20)

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
        body, _ = worker._answer({"predictions": worker._plain(raw)})
        assert json.loads(body) == {"predictions": written}


def _load(path: Path) -> dict[str, object]:
    return {
        "model": str(path),
        "code": str(path / "code"),
        "loader_module": "loader",
        "data": "",
        "max_payload": 1 << 20,
    }


def _json() -> dict[str, object]:
    return {"content_type": "application/json", "params": None}


class _Started:
    """A worker on one interpreter, and the socket to it."""

    def __init__(self, python: Path, cwd: Path) -> None:
        self._ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [python, "-I", "-B", worker.__file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={},
                cwd=cwd,
            )

    def __enter__(self) -> socket.socket:
        return self._ours

    def __exit__(self, *_: object) -> None:
        self._ours.close()
        self._process.wait(timeout=20)
