"""A worker alone: it runs on every Python there is, and reads what MLflow's server reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from envd import config
from envd.build import Interpreter, Interpreters
from envd.run.envd_worker import protocol, reading, writing
from envd.run.envd_worker.asking import ask
from envd.run.envd_worker.refusals import Refused
from tests.worker_program import JSON, Said, load_head, model, small_environment, worker

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


def test_columns_without_names_have_the_types_of_their_places() -> None:
    from mlflow.types import ColSpec, Schema

    metadata = reading.Metadata()
    metadata.schema = Schema([ColSpec("double"), ColSpec("string")])

    found = reading.read({"content_type": "text/csv"}, b"x,y\n1,2\n", metadata)

    assert found.data.to_dict(orient="records") == [{"x": 1.0, "y": "2"}]


def test_an_exception_may_have_any_name() -> None:
    class Named(Exception):  # noqa: N818
        name = 5

    def predict(data: object) -> None:
        raise Named(data)

    with pytest.raises(Refused, match="the model raised Named: no"):
        ask(predict, "no", None)


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


def test_frames_that_a_model_forges_on_its_output_have_no_effect(tmp_path: Path) -> None:
    forging = (
        "import struct\n"
        "for number in range(100):\n"
        "    forged = struct.pack('!QIBI', 2, number, 2, 2) + b'{}{}'\n"
        "    for stream in (0, 1, 2):\n"
        "        try:\n"
        "            os.write(stream, forged)\n"
        "        except OSError:\n"
        "            pass\n"
        "return data"
    )
    log = tmp_path / "log"
    with worker(cwd=tmp_path, python=small_environment(tmp_path / "e"), log=log) as (talk, _):
        talk.load(model(tmp_path / "model", forging))
        answers = [talk.predict({"inputs": number}) for number in range(3)]

    assert answers == [0, 1, 2]
    assert log.read_bytes().count(b"{}{}") == 600


def _with_mlflow(environment: Path, signature: str) -> Path:
    """Return a Python whose mlflow loads with that signature a model that tells `model_config`."""
    python = small_environment(environment)
    (packages,) = (environment / "lib").glob("*/site-packages")
    for file, text in {
        "mlflow/__init__.py": "",
        "mlflow/utils/__init__.py": "",
        "mlflow/utils/proto_json_utils.py": "",
        "mlflow/pyfunc.py": (
            "model_config = None\n"
            f"def load_model({signature}):\n"
            "    model = Model()\n    model.config = model_config\n    return model\n"
            "class Model:\n    def predict(self, data):\n        return self.config\n"
        ),
    }.items():
        (packages / file).parent.mkdir(exist_ok=True)
        (packages / file).write_text(text)
    return python


def test_a_model_config_is_handed_to_an_mlflow_that_takes_one(tmp_path: Path) -> None:
    new = _with_mlflow(tmp_path / "new", "uri, model_config=None")
    old = _with_mlflow(tmp_path / "old", "uri")
    config = {"temperature": 0.5}
    with worker(new, cwd=tmp_path) as (talk, _):
        talk.load(tmp_path, model_config=config)
        told = talk.predict({"inputs": []})
    with worker(old, cwd=tmp_path) as (talk, _), pytest.raises(Said) as raised:
        talk.load(tmp_path, model_config=config)
    with worker(old, cwd=tmp_path) as (talk, _):
        talk.load(tmp_path, model_config=None)

    assert told == config
    assert raised.value.reason == "MODEL_INVALID"
    assert "takes no `model_config`" in str(raised.value)


def test_what_could_not_be_loaded_answers_nothing(tmp_path: Path) -> None:
    path = model(tmp_path / "model", top="raise ValueError('no')")
    with worker(small_environment(tmp_path / "environment"), cwd=tmp_path) as (talk, _):
        for ask in (lambda: talk.load(path), lambda: talk.predict({"inputs": []})):
            with pytest.raises(Said, match="ValueError: no"):
                ask()
