"""Requests that wait together may be answered by one call, and nobody can tell but by the time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from envd.run.envd_worker import batching, protocol
from envd.run.envd_worker.inbox import Request
from envd.run.envd_worker.reading import Input
from tests.worker_program import JSON, Talk, model, small_environment, worker

_PANDAS = ("numpy", "numpy.libs", "pandas", "dateutil", "tzdata")
# What `params` ask for is done with the rows; each call is counted.
_PREDICT = """
import numpy, pandas
table = data if isinstance(data, pandas.DataFrame) else None
def row(one):
    if one == 'die':
        os._exit(3)
    if one == 'bad':
        raise ValueError('a bad row')
    return one
answers = {
    'same': lambda: data,
    'rows': lambda: [row(one) for one in (data if table is None else table.iloc[:, 0])],
    'array': lambda: numpy.array(data),
    'values': lambda: table.to_numpy(),
    'series': lambda: table.iloc[:, 0].rename('first'),
    'doubled': lambda: table.assign(twice=table.iloc[:, 0] * 2),
    'types': lambda: [str(one) for one in table.dtypes] * len(table),
    'numbered': lambda: list(table.index),
    'nan': lambda: table.iloc[:, 0].astype(float).where(table.iloc[:, 0] > 1).tolist(),
    'long': lambda: [1] * 1000 * len(data),
    'one': lambda: {'all': len(data)},
    'text': lambda: 'x' * len(data),
}
return answers[params['do']]()
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Talk]:
    """A worker that answers up to four requests by one call."""
    folder = tmp_path_factory.mktemp("batching")
    python = small_environment(folder / "environment", packages=_PANDAS)
    path = model(folder / "model", _PREDICT)
    loader = path / "code" / "loader.py"
    loader.write_text(loader.read_text().replace("self, data", "self, data, params=None"))
    with worker(python, cwd=folder) as (talk, _):
        talk.load(path, batch=True, max_batch=4)
        yield talk


def _asked(do: str, documents: Sequence[Any], **head: Any) -> list[Any]:
    given = JSON | {"params": {"do": do}} | head
    texts = [one if isinstance(one, str) else json.dumps(one) for one in documents]
    return [(protocol.PREDICT, given, text.encode()) for text in texts]


def _alone(talk: Talk, frames: list[Any]) -> list[Request]:
    found = []
    for frame in frames:
        talk.send(frame)
        found.append(talk.hear())
    return found


def _together(talk: Talk, frames: list[Any]) -> tuple[list[Request], list[list[int]]]:
    """Send all at once; return the answers, and which were run together at any time."""
    numbers = talk.send(*frames)
    answers: list[Request] = []
    begun: list[list[int]] = []
    while len(answers) < len(frames):
        frame = talk.hear()
        if frame.kind == protocol.BEGUN:
            assert frame.number == 0
            begun.append([numbers.index(one) for one in frame.head["ids"]])
        else:
            answers.append(frame)
    assert [one.number for one in answers] == numbers
    return answers, begun


def _table(*rows: Any, columns: Sequence[str] = ("x",), **more: Any) -> dict[str, Any]:
    return {"dataframe_split": {"columns": columns, "data": rows} | more}


def _records(*values: Any) -> dict[str, Any]:
    return {"dataframe_records": [{"x": one} for one in values]}


_JOINED = [
    ("same", [{"inputs": [1]}, {"inputs": [2, 3]}]),
    ("same", [{"inputs": [[1, 2.5]]}, {"inputs": [[2, 0.5], [3, 1.5]]}]),
    ("same", [{"instances": [{"a": 1, "b": "x"}]}, {"instances": [{"a": 2, "b": "y"}]}]),
    ("array", [{"inputs": [1, 2]}, {"inputs": [3]}]),
    ("array", [{"inputs": [True]}, {"inputs": [False]}]),
    ("array", [{"inputs": ["a"]}, {"inputs": ["longer"]}]),
    ("array", [{"inputs": [[0.1, 0.2]]}, {"inputs": [[0.3, 0.4]]}]),
    ("values", [_table([1.5]), _table([2.5], [3.5])]),
    ("series", [_records(1), _records(2, 3)]),
    ("series", [_records("a"), _records("bb")]),
    ("series", [_records(1.0), _records(None, 2.0)]),
    ("doubled", [_table([1, "a"], columns=["x", "y"]), _table([2, "b"], columns=["x", "y"])]),
    ("nan", [_records(1, 2), _records(2), _records(1)]),
    ("types", [_records(*[True]), _records(*[False])]),
]


@pytest.mark.parametrize(("do", "documents"), _JOINED)
def test_what_fits_is_answered_by_one_call_as_by_one_each(
    loaded: Talk, do: str, documents: list[Any]
) -> None:
    frames = _asked(do, documents)
    alone = _alone(loaded, frames)
    together, begun = _together(loaded, frames)

    assert begun == [list(range(len(frames)))]
    assert [one.head["batch"] for one in together] == [len(frames)] * len(frames)
    assert [one.payload for one in together] == [one.payload for one in alone]
    assert [one.head["notes"] for one in together] == [one.head["notes"] for one in alone]
    assert not any("batch" in one.head for one in alone)


_APART = [
    # Joined, the first of these would be of another type.
    ("array", [{"inputs": [1]}, {"inputs": [0.5]}]),
    ("array", [{"inputs": [1]}, {"inputs": [None]}]),
    ("array", [{"inputs": [1]}, {"inputs": [True]}]),
    ("array", [{"inputs": [1]}, {"inputs": [1 << 63]}]),
    ("array", [{"inputs": [[1, 2]]}, {"inputs": [[1, 0.5]]}]),
    ("array", [{"inputs": [[1, 2]]}, {"inputs": [[1], [2]]}]),
    ("series", [_records(1), _records(2, None)]),
    ("series", [_records(1), _records(1.5)]),
    ("series", [_records("a"), _records(None)]),
    ("series", [_records("a", 1), _records("b", 2)]),
    ("series", [_records([1]), _records([2])]),
    ("types", [_records(1), _records(1 << 64)]),
    # Of other columns, in another order, by names of their own.
    ("doubled", [_table([1, 2], columns=["x", "y"]), _table([1, 2], columns=["y", "x"])]),
    ("doubled", [_table([1]), _table([1], columns=["y"])]),
    ("numbered", [_table([1], index=[7]), _table([2], index=[8])]),
    ("numbered", [_table([1], index=["a"]), _table([2], index=["b"])]),
    ("rows", [_table([1]), _table([2], index=[0])]),
    # Of another form, or of none.
    ("same", [{"inputs": [1]}, _records(1)]),
    ("same", [{"inputs": 1}, {"inputs": 2}]),
    ("same", [{"inputs": []}, {"inputs": [1]}]),
    ("same", [{"inputs": {"a": [1]}}, {"inputs": {"a": [2]}}]),
    ("same", [{"prompt": "a"}, {"prompt": "b"}]),
]


@pytest.mark.parametrize(("do", "documents"), _APART)
def test_what_does_not_fit_is_answered_by_a_call_each(
    loaded: Talk, do: str, documents: list[Any]
) -> None:
    frames = _asked(do, documents)
    alone = _alone(loaded, frames)
    together, begun = _together(loaded, frames)

    assert begun == []
    assert [one.payload for one in together] == [one.payload for one in alone]
    assert not any("batch" in one.head for one in together)


def test_requests_of_other_params_or_content_types_are_not_joined(loaded: Talk) -> None:
    document = [{"inputs": [1]}]
    frames = [
        *_asked("same", document),
        *_asked("rows", document),
        *_asked("rows", document, content_type="application/json; charset=utf-8"),
        *_asked("rows", [{"inputs": [1], "params": {"do": "same"}}], params=None),
        *_asked("rows", [{"inputs": [1], "params": {"do": "rows"}}], params=None),
        *_asked("series", ["x\n1\n", "x\n2\n"], content_type="text/csv"),
    ]
    _, begun = _together(loaded, frames)

    assert begun == [[5, 6]]


def test_no_more_are_joined_than_allowed_and_the_rest_follows(loaded: Talk) -> None:
    frames = _asked("rows", [{"inputs": [number]} for number in range(10)])
    answers, begun = _together(loaded, frames)

    assert begun == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [json.loads(one.payload)["predictions"] for one in answers] == [[n] for n in range(10)]


@pytest.mark.parametrize("do", ["long", "one", "text"])
def test_an_answer_that_has_not_one_row_for_each_is_not_divided(loaded: Talk, do: str) -> None:
    frames = _asked(do, [{"inputs": [1]}, {"inputs": [2, 3]}])
    alone = _alone(loaded, frames)
    together, begun = _together(loaded, frames)

    assert begun == [[0, 1], [0], [1]]
    assert [one.payload for one in together] == [one.payload for one in alone]


def test_a_bad_row_fails_alone_and_so_does_a_bad_input(loaded: Talk) -> None:
    documents = [{"inputs": ["a"]}, "[1, 2", {"inputs": ["bad"]}, {"inputs": ["b"]}]
    answers, begun = _together(loaded, _asked("rows", documents))

    assert begun == [[0, 2, 3], [0], [1], [2], [3]]
    assert [one.head.get("reason") for one in answers] == [
        None,
        "PAYLOAD_INVALID",
        "MODEL_RAISED",
        None,
    ]
    assert json.loads(answers[3].payload) == {"predictions": ["b"]}


def test_a_bad_input_among_good_ones_does_not_keep_them_apart(loaded: Talk) -> None:
    answers, begun = _together(loaded, _asked("rows", [{"inputs": [1]}, "{", {"inputs": [2]}]))

    assert begun == [[0, 2]]
    assert [one.kind for one in answers] == [protocol.DONE, protocol.FAILED, protocol.DONE]


def test_who_was_run_when_the_worker_died_is_known(tmp_path: Path) -> None:
    path = model(tmp_path / "model", "return [os._exit(3) if 'die' in data else 1] * len(data)")
    python = small_environment(tmp_path / "environment")
    with worker(python, cwd=tmp_path) as (talk, process):
        talk.load(path, batch=True, max_batch=2)
        numbers = talk.send(*_asked("", [{"inputs": [one]} for one in ("a", "b", "c", "die")]))
        frames = [talk.hear() for _ in range(4)]

        assert process.wait(20) == 3
    kinds = [protocol.BEGUN, protocol.DONE, protocol.DONE, protocol.BEGUN]
    assert [one.kind for one in frames] == kinds
    assert frames[3].head == {"ids": numbers[2:]}


def test_a_model_that_is_not_declared_so_is_not_batched(tmp_path: Path) -> None:
    python = small_environment(tmp_path / "environment")
    with worker(python, cwd=tmp_path) as (talk, _):
        talk.load(model(tmp_path / "model", "return len(data)"))
        _, begun = _together(talk, _asked("", [{"inputs": [1]}, {"inputs": [2]}]))

    assert begun == []


def test_types_that_only_look_the_same_do_not_fit() -> None:
    import numpy as np
    import pandas as pd

    def category(*names: str) -> pd.DataFrame:
        return pd.DataFrame({"x": pd.Categorical(names[:1], categories=names)})

    one = pd.DataFrame({"x": [1]})
    deep = json.loads("[" * 900 + "]" * 900)
    pairs: list[tuple[Any, Any, bool]] = [
        (category("a", "b"), category("a", "b"), True),
        (category("a", "b"), category("a", "b", "c"), False),
        (category("a", "b"), category("b", "a"), False),
        (category("a", "b"), one, False),
        (one, one.astype("int32"), False),
        (one, one.astype("Int64"), False),
        (one.astype("datetime64[ns]"), one.astype("datetime64[us]"), False),
        (one, pd.DataFrame({"x": [1]}, index=pd.Index([0])), False),
        (one, pd.concat([one, one]), False),
        (np.array([1]), np.array([2]), True),
        (np.array([1]), np.array([2], dtype="int32"), False),
        (np.array(["a"]), np.array(["bb"]), False),
        (np.array([[1]]), np.array([[1, 2]]), False),
        (np.array([None]), np.array([None]), False),
        (np.array([1]), np.ma.array([1]), False),
        ([1], (2,), False),
        (deep, deep, False),
    ]

    for first, second, fit in pairs:
        assert batching.fits(Input(first), Input(second)) == fit, (first, second)
        if fit:
            whole, sizes = batching.join([Input(first), Input(second)])
            parts = batching.split(whole, sizes)
            assert type(parts[0]) is type(first)
            assert str(getattr(parts[0], "dtypes", "")) == str(getattr(first, "dtypes", ""))


# Cancelling.


def _waiting(tmp_path: Path) -> str:
    """Return what a model does that does not answer before `go` is there."""
    return (
        "import time\n"
        f"while data == 'wait' and not os.path.exists('{tmp_path}/go'):\n"
        "    time.sleep(0.002)\n"
        "return data"
    )


def test_what_is_cancelled_before_it_began_is_not_run(tmp_path: Path) -> None:
    python = small_environment(tmp_path / "environment")
    path = model(tmp_path / "model", _waiting(tmp_path))
    with worker(python, cwd=tmp_path) as (talk, _):
        talk.load(path)
        documents = [{"inputs": "wait"}, {"inputs": 1}, {"inputs": 2}, {"inputs": 3}]
        numbers = talk.send(*_asked("", documents))
        gone = [numbers[0], numbers[1], numbers[3], 77]
        protocol.send(talk.connection, [(one, protocol.CANCEL, {}, b"") for one in gone])
        (tmp_path / "go").touch()
        answers = [talk.hear() for _ in range(4)]
        # What has been answered cannot be cancelled.
        protocol.send(talk.connection, [(one, protocol.CANCEL, {}, b"") for one in numbers])
        last = talk.predict({"inputs": 4})

    assert [one.number for one in answers] == numbers
    assert [one.head.get("reason") for one in answers] in (
        [None, "CANCELLED", None, "CANCELLED"],
        # It had not begun either when it was cancelled.
        ["CANCELLED", "CANCELLED", None, "CANCELLED"],
    )
    assert json.loads(answers[2].payload)["predictions"] == 2
    assert last == 4


def test_no_more_is_read_than_there_is_room_for(tmp_path: Path) -> None:
    import threading

    python = small_environment(tmp_path / "environment")
    path = model(tmp_path / "model", _waiting(tmp_path).replace("return data", "return len(data)"))
    with worker(python, cwd=tmp_path) as (talk, process):
        talk.load(path)
        before = _peak(process.pid)
        documents = [{"inputs": "wait"}, *[{"inputs": "x" * (4 << 20)}] * 50]
        sending = threading.Thread(target=talk.send, args=_asked("", documents))
        sending.start()
        (tmp_path / "go").touch()
        answers = [talk.hear() for _ in documents]
        sending.join()
        grown = _peak(process.pid) - before

    sizes = [json.loads(one.payload)["predictions"] for one in answers]
    assert sizes == [4, *[4 << 20] * 50]
    assert grown < 120 << 20


def _peak(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = [one for one in lines if one.startswith("VmHWM")]
    return int(line.split()[1]) << 10
