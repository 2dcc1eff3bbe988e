"""Tensors in a worker: what is hostile is refused, what is alike is answered in one call."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envd import config
from envd.build import Interpreters
from envd.run.envd_worker import protocol, reading, tensors
from envd.run.envd_worker.protocol import TENSORS
from envd.run.envd_worker.refusals import Refused
from envd.run.envd_worker.tensor_writing import Wanted
from tests.worker_program import Talk, model, small_environment, worker

HEAD = {"content_type": TENSORS, "params": None}
_PACKAGES = ("numpy", "numpy.libs", "pandas", "dateutil", "tzdata")


def _payload(*inputs: Any, **header: Any) -> bytes:
    """Return a request; an input is a name and an array, which goes into a buffer."""
    documents, buffers = [], []
    for name, array in inputs:
        is_text = array.dtype == object
        buffer = tensors.packed_texts(array.ravel()) if is_text else array.tobytes()
        datatype = "BYTES" if is_text else _datatype(array)
        documents.append(
            {
                "name": name,
                "datatype": datatype,
                "shape": list(array.shape),
                "parameters": {"binary_data_size": len(buffer)},
            }
        )
        buffers.append(buffer)
    return tensors.sealed({"inputs": documents} | header, buffers)


def _datatype(array: np.ndarray) -> str:
    from tritonclient.utils import np_to_triton_dtype

    return np_to_triton_dtype(array.dtype)


def _read(payload: bytes) -> Any:
    return reading.read(HEAD, payload, reading.Metadata())


def _reason(payload: bytes) -> tuple[Any, str]:
    """Return the input in *payload*, or why there is none."""
    try:
        return _read(payload), ""
    except Refused as refused:
        return None, refused.reason


def _raw(header: object, *buffers: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("!I", len(text)) + text + b"".join(buffers)


def _one(**changed: Any) -> Any:
    found = {"name": "x", "datatype": "INT32", "shape": [1], "data": [1]} | changed
    return {"inputs": [{key: one for key, one in found.items() if one is not None}]}


def _sized(size: object, **changed: Any) -> Any:
    return _one(data=None, parameters={"binary_data_size": size}, **changed)


_HOSTILE = [
    (b"", "no header"),
    (b"\x00\x00\x00", "no header"),
    (b"\xff\xff\xff\xff{}", "cut off"),
    (_raw(b"{"), "not JSON"),
    (_raw(b"\xff"), "not JSON"),
    (_raw(b"[" * 100_000), "not JSON"),
    (_raw([1]), "not a JSON object"),
    (_raw({}), "no list of tensors"),
    (_raw({"inputs": []}), "no input"),
    (_raw({"inputs": [1]}), "not a JSON object"),
    (_raw({"inputs": [{}]}), "no name"),
    (_raw(_one(name=7)), "no name"),
    (_raw(_one(datatype="INT7")), "no datatype"),
    (_raw(_one(datatype=None)), "no datatype"),
    (_raw(_one(datatype=["INT32"])), "no datatype"),
    (_raw(_one(shape=None)), "no shape"),
    (_raw(_one(shape=1)), "no shape"),
    (_raw(_one(shape=[1.0])), "sizes of 0 or more"),
    (_raw(_one(shape=[True])), "sizes of 0 or more"),
    (_raw(_one(shape=[-1])), "sizes of 0 or more"),
    (_raw(_one(shape=[1 << 70])), "sizes of 0 or more"),
    (_raw(_one(shape=[1] * 33)), "at most 32"),
    (_raw(_one(shape=[1 << 60, 1 << 60])), "takes"),
    (_raw(_one(data=None)), "no data"),
    (_raw(_one(data=[1, 2])), "has 2 elements"),
    (_raw(_one(data=["1"])), "no INT32"),
    (_raw(_one(data=[1.5])), "no INT32"),
    (_raw(_one(data=[None])), "no INT32"),
    (_raw(_one(data=[1 << 40])), "no INT32"),
    (_raw(_one(datatype="BOOL", data=[2])), "no BOOL"),
    (_raw(_one(datatype="UINT8", data=[-1])), "no UINT8"),
    (_raw(_one(datatype="FP16", data=[1e10])), "no FP16"),
    (_raw(_one(datatype="FP32", data=["a"])), "no FP32"),
    (_raw(_one(datatype="BF16")), "as binary data"),
    (_raw(_one(datatype="BYTES")), "no texts"),
    (_raw(_one(datatype="BYTES", data=["a", "b"], shape=[3])), "has 2 elements"),
    (_raw(_one(parameters=[1])), "not a JSON object"),
    (_raw(_one(parameters={"content_type": "pickle"})), "not known"),
    (_raw(_one(parameters={"content_type": ["str"]})), ""),
    (_raw(_one(parameters={"content_type": "str"})), "for BYTES"),
    (_raw(_one() | {"parameters": {"content_type": "pickle"}}), "not known"),
    (_raw(_one() | {"parameters": {"content_type": ["pd"]}}), "not known"),
    (_raw(_one() | {"parameters": 1}), "not a JSON object"),
    (_raw(_one() | {"id": float("nan")}), "no text"),
    (_raw(_one(parameters={"shared_memory_region": "a"})), "no shared memory"),
    (_raw(_one() | {"outputs": 1}), "no list"),
    (_raw(_one() | {"outputs": [1]}), "no name"),
    (
        _raw(_one() | {"outputs": [{"name": "y", "parameters": {"shared_memory_region": "a"}}]}),
        "no shared memory for `y`",
    ),
    (_raw({"inputs": _one()["inputs"] * 2}), "two tensors"),
    (_raw(_sized(5), b"1234"), "is wrong"),
    (_raw(_sized(-1), b"1234"), "is wrong"),
    (_raw(_sized(4.0), b"1234"), "is wrong"),
    (_raw(_sized(size=True), b"1234"), "is wrong"),
    (_raw(_sized(3), b"123"), "take 4"),
    (_raw(_sized(4), b"12345"), "no tensor's"),
    (_raw(_sized(1, datatype="BOOL"), b"\x02"), "other bytes than 0 and 1"),
    (_raw(_sized(3, datatype="BYTES"), b"\x01\x00\x00"), "cut off"),
    (_raw(_sized(5, datatype="BYTES"), b"\xff\xff\xff\xffa"), "cut off"),
    (_raw(_sized(5, datatype="BYTES") | {"parameters": {"content_type": "str"}},
          b"\x01\x00\x00\x00\xff"), "utf-8"),
]  # fmt: skip


@pytest.mark.parametrize(("payload", "why"), _HOSTILE)
def test_what_are_no_tensors_is_refused_and_says_why(payload: bytes, why: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(Refused) as raised:
            _read(payload)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert raised.value.reason == "PAYLOAD_INVALID"
    assert why in str(raised.value)
    assert peak < (8 << 20) + 10 * len(payload)


_GOOD = _payload(
    ("a", np.array([[1, 2]], "int32")),
    ("b", np.array([b"text", b""], object)),
    parameters={"content_type": "dict", "binary_data_output": True},
    outputs=[{"name": "a"}],
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_what_was_changed_on_the_way_is_read_or_refused(data: st.DataObject) -> None:
    changed = bytearray(_GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(changed) - 1))
        changed[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, 8))

    found, reason = _reason(bytes(changed[: len(changed) - cut]))

    assert found is not None or reason == "PAYLOAD_INVALID"


def test_a_shape_of_nothing_costs_nothing() -> None:
    for shape in ([0, 1 << 61], [1 << 61, 0], [0] * 32):
        found, reason = _reason(_raw(_one(datatype="FP64", shape=shape, data=[])))
        assert reason == "PAYLOAD_INVALID" or found.data.size == 0


def test_arrays_may_be_written_into_wherever_they_lay() -> None:
    for payload in (_GOOD, memoryview(bytearray(_GOOD))):
        array = _read(payload).data["a"]
        array[0, 0] = 7
        assert array.flags.aligned
        assert array.tolist() == [[7, 2]]


def test_long_texts_beside_many_short_ones_take_no_room_for_all() -> None:
    values = ["x" * 100_000] + [""] * 100_000
    payload = _raw(_one(datatype="BYTES", shape=[len(values)], data=values))

    tracemalloc.start()
    found = _read(payload).data
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert found.tolist() == values
    assert peak < 40 << 20


def test_an_answer_has_the_id_of_its_request_and_is_binary_where_it_is_to_be() -> None:
    header = {
        "id": "7",
        "outputs": [{"name": "a", "parameters": {"binary_data": True}}, {"name": "b"}],
    }
    wanted = Wanted(header, reading.Metadata())
    body, notes = wanted.written({"a": np.array([1]), "b": np.array([np.nan])}, 1 << 20)
    answer, rest = tensors.opened(body)

    assert answer["id"] == "7"
    first, second = answer["outputs"]
    assert first["parameters"] == {"content_type": "np", "binary_data_size": 8}
    assert bytes(rest) == struct.pack("<q", 1)
    assert second["data"] == [None]
    assert [one["code"] for one in notes] == ["NAN_AS_NULL"]


def test_bytes_that_are_no_text_are_refused_as_json() -> None:
    wanted = Wanted({}, reading.Metadata())

    with pytest.raises(Refused, match="ask for it as binary data"):
        wanted.written(np.array([b"\xff"], object), 1 << 20)


def test_objects_that_cannot_be_written_are_the_models_fault() -> None:
    wanted = Wanted({}, reading.Metadata())

    for raw in (object(), [object()], {"a": {1, 2}}, np.array([1j])):
        with pytest.raises(Refused) as raised:
            wanted.written(raw, 1 << 20)
        assert raised.value.reason == "MODEL_RAISED"


def test_every_python_of_this_machine_reads_and_writes_them(tmp_path: Path) -> None:
    path = model(tmp_path / "model", "return data")
    found = Interpreters(config.load(root=tmp_path / "root", environ={})).found()
    inputs = [("x", np.array([[1, 2]], "int16")), ("y", np.array([[b"a"], [b"b"]], object))]
    wanted = {"parameters": {"binary_data_output": True}}
    listed = [
        {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [0.5]},
        {"name": "when", "datatype": "BYTES", "shape": [1], "data": ["2026-01-02"]}
        | {"parameters": {"content_type": "str"}},
    ]

    for one in {one.python.minor: one for one in found}.values():
        with worker(one.path, cwd=tmp_path) as (talk, _):
            talk.load(path)
            binary = talk.ask(protocol.PREDICT, HEAD, _payload(*inputs, **wanted))
            plain = talk.ask(protocol.PREDICT, HEAD, tensors.sealed({"inputs": listed}))

        assert _arrays(binary.payload) == {"x": [1, 2], "y": [b"YQ==", b"Yg=="]}, one.python
        answer, _ = tensors.opened(plain.payload)
        data = {each["name"]: each["data"] for each in answer["outputs"]}
        assert data == {"x": [0.5], "when": ["2026-01-02"]}, one.python


# Several in one call.

_PREDICT = """
import numpy, pandas
if isinstance(data, dict):
    rows = len(data['a'])
    return {key: one * 2 for key, one in data.items()} | {'rows': numpy.full(rows, rows)}
if isinstance(data, pandas.DataFrame):
    return data.assign(rows=len(data))
return data * 2 + len(data) * 1000
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Talk]:
    folder = tmp_path_factory.mktemp("tensors")
    python = small_environment(folder / "environment", packages=_PACKAGES)
    with worker(python, cwd=folder) as (talk, _):
        talk.load(model(folder / "model", _PREDICT), batch=True, max_batch=4)
        yield talk


def _together(talk: Talk, *payloads: bytes) -> list[Any]:
    """Ask all at once; return the answers, and by how many calls."""
    numbers = talk.send(*((protocol.PREDICT, HEAD, one) for one in payloads))
    answers = {}
    while len(answers) < len(numbers):
        frame = talk.hear()
        if frame.kind == protocol.DONE:
            answers[frame.number] = frame
    return [answers[one] for one in numbers]


def _arrays(payload: bytes) -> dict[str, Any]:
    header, rest = tensors.opened(payload)
    return {one.name: one.values() for one in tensors.of(header["outputs"], rest)}


def test_arrays_are_joined_and_each_gets_its_rows(loaded: Talk) -> None:
    payloads = [_payload(("x", np.full((count, 2), count))) for count in (1, 2, 3)]
    found = _together(loaded, *payloads)

    assert [one.head.get("batch") for one in found] == [3, 3, 3]
    assert [_arrays(one.payload)["output-1"] for one in found] == [
        [6000 + 2 * count] * 2 * count for count in (1, 2, 3)
    ]


def test_so_are_tables_and_arrays_by_name(loaded: Talk) -> None:
    one, two = np.array([1.5]), np.array([[2.5], [3.5]])
    for kind in ("pd", "dict"):
        asked = {"content_type": kind, "binary_data_output": True}
        payloads = [
            _payload(("a", a), ("b", b), parameters=asked)
            for a, b in ((one, -one), (two[:, 0], -two[:, 0]))
        ]
        first, second = _together(loaded, *payloads)

        assert (first.head["batch"], second.head["batch"]) == (2, 2)
        times = 1 if kind == "pd" else 2
        assert _arrays(first.payload)["a"] == [1.5 * times]
        assert _arrays(second.payload) == {
            "a": [2.5 * times, 3.5 * times],
            "b": [-2.5 * times, -3.5 * times],
            "rows": [3, 3],
        }


def test_each_is_answered_in_the_form_it_asks_for(loaded: Talk) -> None:
    x = np.array([[1.0, 2.0]])
    plain, binary = _together(
        loaded,
        _payload(("x", x), id="a"),
        _payload(("x", x), parameters={"binary_data_output": True}),
    )

    assert plain.head["batch"] == binary.head["batch"] == 2
    header, rest = tensors.opened(plain.payload)
    assert (header["id"], header["outputs"][0]["data"], len(rest)) == ("a", [2002.0, 2004.0], 0)
    assert len(tensors.opened(binary.payload)[1]) == 16


@pytest.mark.parametrize(
    "pair",
    [
        (np.zeros((1, 2)), np.zeros((1, 3))),
        (np.zeros((1, 2)), np.zeros((1, 2), "float32")),
        (np.zeros((1, 2)), np.zeros(2)),
        (np.array([b"a"], object), np.array([b"b"], object)),
    ],
)
def test_what_is_not_alike_is_asked_for_alone(loaded: Talk, pair: Any) -> None:
    numbers = loaded.send(*((protocol.PREDICT, HEAD, _payload(("x", one))) for one in pair))
    found = [loaded.hear() for _ in numbers]

    assert [one.number for one in found] == numbers
    assert not any("batch" in one.head for one in found)
