"""Tensors are read and written as by MLServer 1.7.1's runtime for MLflow, or better.

`mlserver_answers.json` is what that said (`make_mlserver_answers.py`, mlserver-mlflow 1.7.1,
pandas 2); whatever is otherwise here is in a table of its own.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from envd.model import signature
from envd.run.envd_worker import reading, tensors
from envd.run.envd_worker.protocol import TENSORS
from envd.run.envd_worker.refusals import Refused
from envd.run.envd_worker.tensor_writing import Wanted
from tests import mlserver_cases as cases
from tests.conftest import Daemon

HERE = Path(__file__).parent
SAID = json.loads((HERE / "mlserver_answers.json").read_text())
# Where MLServer fails, or answers what nobody can have meant.
_READ_BETTER = {
    "np of texts": {"array": [{"bytes": "a"}, {"bytes": "b"}], "dtype": "O", "shape": [2, 1]},
}
_REFUSED = {"pd of two columns in one"}


def _output(datatype: str, data: list[Any], kind: str | None, name: str = "output-1") -> Any:
    parameters = {"parameters": {"content_type": kind}} if kind else {}
    shape = [len(data), 1]
    return {"name": name, "shape": shape, "datatype": datatype, "data": data} | parameters


def _answer(*outputs: Any, kind: str | None = None) -> Any:
    parameters = {"parameters": {"content_type": kind}} if kind else {}
    return {"outputs": list(outputs)} | parameters


_WRITTEN_BETTER = {
    # In MLServer's the bytes of all elements are one.
    "bytes": _answer(_output("BYTES", ["ab", "cd"], "np"), kind="np"),
    "chat": _answer(
        _output("BYTES", ['{"message":{"content":"hi"}}'], "pd_json", "choices"),
        _output("BYTES", ["x"], "str", "id"),
        _output("BYTES", ['{"n":3}'], "pd_json", "usage"),
        kind="dict",
    ),
    "dict of lists": _answer(
        _output("INT64", [1, 2], "np", "foo"), _output("BYTES", ["a", "b"], "str", "bar"),
        kind="dict",
    ),
    "list of bytes": _answer(_output("BYTES", ["YQ=="], "base64")),
    "list of dicts": _answer(_output("BYTES", ['{"a":1}', '{"a":null}'], "pd_json")),
    "list of lists": _answer(_output("INT64", [1, 2, 3, 4], "np") | {"shape": [2, 2]}),
    "list of numbers": _answer(_output("FP64", [1.0, 2.5], "np")),
    "list of times": _answer(_output("BYTES", ["2026-01-02T03:00:00"], "datetime")),
    "nothing": _answer(_output("BYTES", ["null"], "pd_json")),
    "number": _answer(_output("FP64", [1.5], "np") | {"shape": [1]}),
    "series": _answer(_output("INT64", [1, 2, 3], None, "s"), kind="pd"),
    "table of objects": _answer(_output("BYTES", ['"a"', "null"], "pd_json", "x"), kind="pd"),
    "table of times": _answer(
        _output("BYTES", ["2026-01-02T00:00:00"], "datetime", "x"), kind="pd"
    ),
    "table with missing": _answer(_output("FP64", [1.0, None], None, "x"), kind="pd"),
    "table without names": _answer(
        _output("INT64", [1], None, "0"), _output("INT64", [2], None, "1"), kind="pd"
    ),
    "text": _answer(_output("BYTES", ["foo"], "str")),
    "times": _answer(_output("BYTES", ["2026-01-02T00:00:00"], "datetime"), kind="np"),
}  # fmt: skip


def _metadata(inputs: Any) -> reading.Metadata:
    from mlflow.types.schema import Schema

    found = reading.Metadata()
    found.schema = Schema.from_json(json.dumps(inputs)) if inputs else None
    return found


def _payload(document: Any, *, is_binary: bool) -> bytes:
    """Return a request as a worker takes it."""
    buffers = []
    inputs = []
    for one in document["inputs"]:
        given = dict(one)
        if is_binary:
            values = list(tensors.flat(given.pop("data")))
            if one["datatype"] == "BYTES":
                buffers.append(tensors.packed_texts([text.encode() for text in values]))
            else:
                buffers.append(tensors.packed(values, one["datatype"]))
            size = {"binary_data_size": len(buffers[-1])}
            given["parameters"] = given.get("parameters", {}) | size
        inputs.append(given)
    return tensors.sealed(document | {"inputs": inputs}, buffers)


def _read(name: str, *, is_binary: bool) -> Any:
    inputs, document = cases.REQUESTS[name]
    head = {"content_type": TENSORS, "params": None}
    payload = _payload(document, is_binary=is_binary)
    return cases.described(reading.read(head, payload, _metadata(inputs)).data)


@pytest.mark.parametrize("name", cases.REQUESTS)
def test_a_request_becomes_what_mlserver_makes_of_it(name: str) -> None:
    said = SAID["read"][name]
    if name in _REFUSED or "error" in said:
        with pytest.raises(Refused) as raised:
            _read(name, is_binary=False)
        assert raised.value.reason == "PAYLOAD_INVALID"
    else:
        assert _read(name, is_binary=False) == said


@pytest.mark.parametrize("name", cases.BINARY)
def test_so_does_one_whose_elements_are_bytes(name: str) -> None:
    assert _read(name, is_binary=True) == _READ_BETTER.get(name, SAID["read_binary"][name])


@pytest.mark.parametrize("name", [name for name in cases.REQUESTS if name not in cases.BINARY])
def test_how_numbers_are_sent_makes_no_difference(name: str) -> None:
    said = SAID["read"][name]
    if name in _REFUSED or "error" in said:
        with pytest.raises((Refused, tensors.Malformed)):
            _read(name, is_binary=True)
    elif name not in {"pd and texts", "texts in a tensor"}:
        assert _read(name, is_binary=True) == said


_LONGS = {"type": "array", "items": {"type": "long"}}
_HINTED = [
    # Of `list[str]`, `list[int]`, `list[list[int]]`, `list[SomeModel]`.
    ("string", "BYTES", [2, 1], ["a", "é"], ["a", "é"]),
    ("string", "BYTES", [2], ["a", "é"], ["a", "é"]),
    ("long", "INT64", [2, 1], [1, 2], [1, 2]),
    (_LONGS, "INT64", [2, 2], [1, 2, 3, 4], [[1, 2], [3, 4]]),
    (_LONGS, "BYTES", [2], ["[1]", "[2, 3]"], [[1], [2, 3]]),
    (
        {"type": "object", "properties": {"a": {"type": "long", "required": True}}},
        "BYTES", [1], ['{"a": 1}'], [{"a": 1}],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "datatype", "shape", "data", "wanted"), _HINTED)
def test_a_model_of_type_hints_gets_a_list_of_what_they_say(
    kind: Any, datatype: str, shape: list[int], data: list[Any], wanted: list[Any]
) -> None:
    column = {"required": True, **(kind if isinstance(kind, dict) else {"type": kind})}
    metadata = _metadata([column])
    metadata.is_from_type_hint = True
    # It has no name, and may be called anything.
    one = {"name": "any", "datatype": datatype, "shape": shape, "data": data}
    head = {"content_type": TENSORS, "params": None}

    for is_binary in (False, True):
        payload = _payload({"inputs": [one]}, is_binary=is_binary)
        found = reading.read(head, payload, metadata).data

        assert found == wanted
        assert type(found[0]) is type(wanted[0])


def test_what_has_no_name_in_the_signature_is_read_as_it_says_whatever_it_is_called() -> None:
    inputs = [{"type": "tensor", "tensor-spec": {"dtype": "str", "shape": [-1]}}]
    one = {"name": "any", "datatype": "BYTES", "shape": [2], "data": ["a", "b"]}
    payload = _payload({"inputs": [one]}, is_binary=True)

    head = {"content_type": TENSORS, "params": None}
    found = reading.read(head, payload, _metadata(inputs)).data

    assert (found.dtype.kind, found.tolist()) == ("U", ["a", "b"])


def _written(raw: Any, **header: Any) -> Any:
    body, _ = Wanted(header, reading.Metadata()).written(raw, 1 << 20)
    found, rest = tensors.opened(body)
    assert not len(rest)
    return found


@pytest.mark.parametrize(("name", "raw"), cases.answers().items())
def test_an_answer_is_written_as_mlserver_writes_it(name: str, raw: Any) -> None:
    said = SAID["written"][name]
    if "error" in said:
        assert name in _WRITTEN_BETTER

    assert _written(raw) == _WRITTEN_BETTER.get(name, said)


@pytest.mark.parametrize("name", cases.METADATA)
def test_a_signature_says_of_tensors_what_it_says_to_mlserver(name: str, tmp_path: Path) -> None:
    from envd.model import read

    text = json.dumps(cases.METADATA[name])
    flavor = "flavors:\n  python_function:\n    loader_module: loader\n"
    lines = "".join(f"  {part}: '{text}'\n" for part in ("inputs", "outputs"))
    (tmp_path / "MLmodel").write_text(f"{flavor}signature:\n{lines}")
    found = signature.of(read(tmp_path))

    told = [
        {
            "name": one.name,
            "datatype": one.datatype,
            "shape": list(one.shape),
            "parameters": {"content_type": one.content_type},
        }
        for one in (*found.inputs, *found.outputs)
    ]
    assert told == SAID["metadata"][name]["tensors"]
    assert found.content_type == SAID["metadata"][name]["content_type"]


@pytest.fixture(scope="module")
def mlserver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with MLServer's runtime for MLflow."""
    uv = Path(sys.executable).parent / "uv"
    folder = tmp_path_factory.mktemp("mlserver")
    python = folder / "environment" / "bin" / "python"
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, python.parent.parent],
                   check=True)  # fmt: skip
    # The uvloop after it leaves MLServer's workers without an event loop.
    wanted = ("mlserver==1.7.1", "mlserver-mlflow==1.7.1", "uvloop<0.22", "pandas<3")
    wanted += ("scikit-learn==1.9.1", "cloudpickle==3.1.2")
    subprocess.run([uv, "pip", "install", "--quiet", "--system-certs", "--python", python, *wanted],
                   check=True)  # fmt: skip
    return python


@pytest.mark.slow
def test_that_is_what_mlserver_says(mlserver: Path) -> None:
    program = HERE / "make_mlserver_answers.py"
    text = subprocess.run([mlserver, program], check=True, capture_output=True, text=True).stdout

    assert json.loads(text) == SAID


_IRIS = HERE.parent / "examples" / "iris"


@contextlib.contextmanager
def _serving(python: Path, folder: Path) -> Iterator[str]:
    """Have MLServer serve the example; yield its address."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        ports = [one.getsockname()[1] for one in sockets]
    names = ("http_port", "grpc_port", "metrics_port")
    about = {"host": "127.0.0.1", "parallel_workers": 0} | dict(zip(names, ports, strict=True))
    (folder / "settings.json").write_text(json.dumps(about))
    runtime = "mlserver_mlflow.MLflowRuntime"
    model = {"name": "iris", "implementation": runtime, "parameters": {"uri": str(_IRIS)}}
    (folder / "model-settings.json").write_text(json.dumps(model))
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [python.parent / "mlserver", "start", folder], cwd=folder, stdout=log, stderr=log
        )
    try:
        yield f"127.0.0.1:{ports[1]}"
    finally:
        process.terminate()
        process.wait(60)


def _of_iris(*, is_raw: bool, datatype: str, field: str) -> Any:
    """Return a request for two flowers."""
    found = service_pb2.ModelInferRequest(model_name="iris", id="7")
    names = ("sepal length (cm)", "sepal width (cm)", "petal length (cm)", "petal width (cm)")
    for name, values in zip(names, ([5.1, 6], [3.5, 3], [1.4, 5], [0.2, 2]), strict=True):
        one = found.inputs.add(name=name, datatype=datatype, shape=[2, 1])
        if is_raw:
            found.raw_input_contents.append(tensors.packed(list(map(float, values)), datatype))
        else:
            getattr(one.contents, field).extend(values)
    return found


@pytest.mark.slow
def test_a_real_model_answers_as_in_mlserver(
    mlserver: Path, tmp_path: Path, shared_root: Path, start_daemon: Callable[..., Daemon]
) -> None:
    file = tmp_path / "envd.toml"
    file.write_text(f'[models]\niris = "{_IRIS}"\n')
    daemon = start_daemon(shared_root, ENVD_CONFIG=str(file))
    kinds = (("FP64", "fp64_contents"), ("FP32", "fp32_contents"))
    asked = [_of_iris(is_raw=one, datatype=datatype, field=field)
             for one in (True, False) for datatype, field in kinds]  # fmt: skip

    def answers(address: str) -> list[str]:
        with grpc.insecure_channel(address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            found = [stub.ModelInfer(one, timeout=240, wait_for_ready=True) for one in asked]
            told = stub.ModelMetadata(service_pb2.ModelMetadataRequest(name="iris"))
        for one in found:
            # Of MLServer's, a model has none; and contents that are nowhere are still there.
            one.model_version = ""
            for output in one.outputs:
                if not output.contents.ByteSize():
                    output.ClearField("contents")
        told.ClearField("versions")
        told.ClearField("platform")
        return [str(one) for one in (*found, told)]

    with _serving(mlserver, tmp_path) as address:
        theirs = answers(address)
    ours = answers(f"unix:{daemon.root}/predict.sock")

    assert ours == theirs
