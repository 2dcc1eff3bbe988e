"""The Open Inference Protocol: a real client of Triton's has a whole session with a daemon.

No stubs of envd's for it may be in this process: two copies of one proto are a TypeError.
"""

from __future__ import annotations

import asyncio
import json
import queue
import re
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as triton
from envd_client import Client
from envd_client.errors import DaemonUnreachableError
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tritonclient.grpc import aio, model_config_pb2, service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from envd.serve.roles import ROLES
from tests import taken
from tests.conftest import Daemon, environment, launch, one_python, stop, wait_for
from tests.tiny import Tiny

PACKAGES = ("numpy", "numpy.libs", "pandas", "dateutil", "tzdata", "six.py", "pytz")
# What it is asked comes back, or what its params say.
_ECHO = """
import sys
sys.path.append(PATH)


class Model:
    def predict(self, data, params=None):
        do = (params or {}).get("do")
        if do == "raise":
            raise RuntimeError("it was asked to")
        if do == "what":
            values = list(data.values()) if isinstance(data, dict) else [data]
            return [f"{type(one).__name__} {getattr(one, 'dtype', '')}" for one in values]
        if do == "params":
            return [f"{key}={value!r}" for key, value in sorted(params.items())]
        if do == "long":
            return "x" * 3_900_000
        if do == "large":
            return "x" * (4 << 20)
        if do == "wait":
            import os, time
            open(params["begun"], "w").close()
            while not os.path.exists(params["end"]):
                time.sleep(0.002)
        return data

    def predict_stream(self, data, params=None):
        for number in range(int((params or {}).get("count", 3))):
            if number == 2 and (params or {}).get("do") == "raise":
                raise RuntimeError("two were enough")
            yield {"number": number} if number % 2 else f"item {number}"


def _load_pyfunc(path):
    return Model()
"""


def packages(folder: Path) -> Path:
    """Make a folder for sys.path with the numpy and the pandas of the tests."""
    folder.mkdir()
    for name in PACKAGES:
        place = Path(sysconfig.get_path("purelib")) / name
        if place.exists():
            (folder / name).symlink_to(place)
    return folder


def echo(tiny: Tiny, path: Path, libraries: Path, more: str = "") -> Path:
    """Write a model that has those *libraries*."""
    tiny.model(path)
    loader = _ECHO.replace("PATH", repr(str(libraries)))
    (path / "code" / "tiny_loader.py").write_text(loader)
    with (path / "MLmodel").open("a") as file:
        file.write(more)
    return path


@dataclass(frozen=True)
class Session:
    """A daemon with models that have names, and a client of Triton's."""

    folder: Path
    daemon: Daemon
    client: triton.InferenceServerClient

    @property
    def target(self) -> str:
        return f"unix:{self.daemon.root}/predict.sock"

    def infer(self, model: str, *inputs: Any, **more: Any) -> triton.InferResult:
        return self.client.infer(model, list(inputs), **more)


@pytest.fixture(scope="module")
def session(
    tmp_path_factory: pytest.TempPathFactory, home: Path, tiny: Tiny, tools: Path
) -> Iterator[Session]:
    folder = tmp_path_factory.mktemp("oip")
    libraries = packages(folder / "libraries")
    signature = (
        "signature:\n"
        """  inputs: '[{"name": "age", "type": "long"}, {"name": "who", "type": "string"}]'\n"""
        """  outputs: '[{"type": "tensor", "tensor-spec":"""
        """ {"dtype": "float32", "shape": [-1, 3]}}]'\n"""
    )
    echo(tiny, folder / "echo", libraries)
    echo(tiny, folder / "bare", folder / "nothing")
    echo(tiny, folder / "signed", libraries, signature)
    echo(tiny, folder / "batched", libraries, "metadata:\n  envd: {batch: true}\n")
    (folder / "broken").mkdir()
    echo(tiny, folder / "repository" / "grown" / "2", libraries)
    echo(tiny, folder / "repository" / "grown" / "10", libraries)
    file = folder / "envd.toml"
    names = ("echo", "bare", "signed", "batched", "broken", "lazy", "talks")
    echo(tiny, folder / "lazy", libraries)
    talks = echo(tiny, folder / "talks", libraries) / "MLmodel"
    talks.write_text(talks.read_text() + "    streamable: true\n")
    lines = [f'{one} = "{folder}/{one}"' for one in names]
    file.write_text("\n".join(["[models]", f'repository = "{folder}/repository"', *lines]))
    settings = {
        **tiny.settings,
        **one_python(tools),
        "ENVD_CONFIG": str(file),
        "ENVD_DAEMON__GRPC": "127.0.0.1:0",
        # Its models have the libraries of the tests.
        "ENVD_SECURITY__PROFILE": "dev",
        "ENVD_DAEMON__MAX_MESSAGE": "4MiB",
        "ENVD_DAEMON__MAX_IN_FLIGHT": "64MiB",
    }
    daemon = launch(folder / "root", home, **settings)
    with triton.InferenceServerClient(f"unix:{daemon.root}/predict.sock") as client:
        yield Session(folder, daemon, client)
    stop(daemon)


def test_envds_own_services_are_not_for_whoever_comes_over_tcp(session: Session) -> None:
    address = json.loads((session.daemon.root / "daemon.json").read_text())["grpc"]

    with Client(address) as client, pytest.raises(DaemonUnreachableError) as raised:
        client.predict("echo", {"inputs": [1]})

    assert "give a socket of envd's, or a token" in raised.value.message


def tensor(name: str, array: np.ndarray, datatype: str = "", **parameters: Any) -> Any:
    """Return an input with the elements of *array*."""
    found = triton.InferInput(name, list(array.shape), datatype or _datatype(array))
    found.set_data_from_numpy(array)
    for key, value in parameters.items():
        found._input.parameters[key].string_param = value
    return found


def _datatype(array: np.ndarray) -> str:
    from tritonclient.utils import np_to_triton_dtype

    return np_to_triton_dtype(array.dtype)


_ARRAYS = [
    np.array([[True, False], [False, True]]),
    np.array([[0, 255]], "uint8"),
    np.array([[0, 65535]], "uint16"),
    np.array([[0, 2**32 - 1]], "uint32"),
    np.array([[0, 2**64 - 1]], "uint64"),
    np.array([[-128, 127]], "int8"),
    np.array([[-(2**15), 2**15 - 1]], "int16"),
    np.array([[-(2**31), 2**31 - 1]], "int32"),
    np.array([[[-(2**63)]], [[2**63 - 1]]], "int64"),
    np.array([[0.5, np.inf, np.nan]], "float16"),
    np.array([[0.1, -np.inf, np.nan]], "float32"),
    np.array([[0.1, 1e300, np.nan]], "float64"),
    np.array([["a", "é"], ["", "longer"]], object),
    np.array([[b"\x00\xff", b"ends with zero\x00"]], object),
    np.array([["a"], [b"\xff"]], object),
]


def _of(array: np.ndarray) -> str:
    return f"{array.dtype}{array.shape}"


@pytest.mark.parametrize("array", _ARRAYS, ids=_of)
def test_every_datatype_comes_back_as_it_was_sent(session: Session, array: np.ndarray) -> None:
    answer = session.infer("echo", tensor("x", array))
    back = answer.as_numpy("output-1")

    flat = [one.encode() if isinstance(one, str) else one for one in array.ravel().tolist()]
    assert back.shape == array.shape
    np.testing.assert_array_equal(back.ravel(), np.array(flat, back.dtype))
    assert answer.get_output("output-1").datatype == _datatype(array)


@pytest.mark.parametrize("array", _ARRAYS[:-3], ids=_of)
def test_a_model_without_numpy_is_given_lists(session: Session, array: np.ndarray) -> None:
    back = session.infer("bare", tensor("x", array)).as_numpy("output-1")

    assert back.shape == array.shape
    np.testing.assert_array_equal(back, array.astype(back.dtype))


def test_half_the_bits_of_a_float_are_enough(session: Session) -> None:
    sent = np.array([[1.5, -2.0, 3.140625]], ml_dtypes.bfloat16)

    for model in ("echo", "bare"):
        answer = session.infer(model, tensor("x", sent))
        np.testing.assert_array_equal(answer.as_numpy("output-1"), sent.astype("float32"))


def test_texts_are_read_as_their_content_type_says(session: Session) -> None:
    texts = np.array(["a", "é"], object)
    documents = np.array(['{"a": [1]}', "null"], object)
    encoded = np.array(["YQ==", "no base64"], object)
    times = np.array(["2026-01-02T03:04:05", "2026-01-02"], object)
    what = {"do": "what"}

    def types(array: np.ndarray, kind: str) -> list[str]:
        answer = session.infer("echo", tensor("x", array, content_type=kind), parameters=what)
        return answer.as_numpy("output-1").ravel().tolist()

    def back(array: np.ndarray, kind: str) -> list[bytes]:
        answer = session.infer("echo", tensor("x", array, content_type=kind))
        return answer.as_numpy("output-1").ravel().tolist()

    assert types(texts, "str") == [b"list "]
    assert back(texts, "str") == [b"a", "é".encode()]
    assert back(documents, "pd_json") == [b'{"a":[1]}', b"null"]
    assert back(encoded, "base64") == [b"YQ==", b"bm8gYmFzZTY0"]
    assert back(times, "datetime") == [b"2026-01-02T03:04:05", b"2026-01-02T00:00:00"]


# The whole session.


def test_it_says_what_it_is(session: Session) -> None:
    client = session.client
    server = client.get_server_metadata()
    signed = client.get_model_metadata("signed")

    assert client.is_server_live()
    assert client.is_server_ready()
    assert (server.name, list(server.extensions)[:1]) == ("envd", ["model_repository"])
    assert (signed.name, list(signed.versions), signed.platform) == ("signed", ["1"], "mlflow")
    told = [(one.name, one.datatype, list(one.shape)) for one in signed.inputs]
    assert told == [("age", "INT64", [-1, 1]), ("who", "BYTES", [-1, 1])]
    told = [(one.name, one.datatype, list(one.shape)) for one in signed.outputs]
    assert told == [("output-0", "FP32", [-1, 3])]


def test_it_says_what_triton_says_of_a_model(session: Session) -> None:
    config = session.client.get_model_config("signed").config

    assert (config.name, config.platform, config.max_batch_size) == ("signed", "mlflow", 0)
    assert [(one.name, one.data_type) for one in config.input] == [
        ("age", model_config_pb2.TYPE_INT64),
        ("who", model_config_pb2.TYPE_STRING),
    ]
    assert list(config.output[0].dims) == [-1, 3]
    with pytest.raises(InferenceServerException, match="UNIMPLEMENTED"):
        session.client.get_inference_statistics("signed")


def test_a_signature_that_no_answer_can_hold_says_nothing(session: Session, tiny: Tiny) -> None:
    half = r"""  inputs: '[{"type": "long", "name": "\ud800"}]'"""
    whole = r"""  outputs: '[{"type": "long", "name": "\ud83d\ude00"}]'"""
    path = echo(tiny, session.folder / "half", session.folder, f"signature:\n{half}\n{whole}\n")
    with session.daemon.client() as admin:
        admin.load_model(path, name="half", wait=False)
        found = session.client.get_model_metadata("half")
        config = session.client.get_model_config("half").config
        admin.unload_model("half")

    assert (list(found.inputs), [one.name for one in found.outputs]) == ([], ["\N{GRINNING FACE}"])
    assert (list(config.input), len(config.output)) == ([], 1)


def test_models_are_loaded_and_unloaded(session: Session) -> None:
    client = session.client

    def states() -> dict[tuple[str, str], str]:
        index = client.get_model_repository_index().models
        return {(one.name, one.version): one.state for one in index}

    before = states()
    is_ready = client.is_model_ready("lazy")
    client.load_model("lazy")
    after, is_loaded = states(), client.is_model_ready("lazy")
    client.unload_model("lazy")

    assert before["lazy", "1"] == "UNAVAILABLE"
    assert not is_ready
    assert (after["lazy", "1"], is_loaded) == ("READY", True)
    assert not client.is_model_ready("lazy")
    assert {version for name, version in before if name == "grown"} == {"2", "10"}
    with pytest.raises(InferenceServerException, match=r"MLmodel|MODEL") as raised:
        client.load_model("broken")
    assert raised.value.status() == "StatusCode.NOT_FOUND"
    with pytest.raises(InferenceServerException, match="send no parameters"):
        client.load_model("lazy", config="{}")


def test_a_repository_serves_its_newest_version_and_the_others_by_number(
    session: Session, tiny: Tiny
) -> None:
    client, home = session.client, session.folder / "repository"
    newest = session.infer("grown", _ONE).get_response().model_version
    older = session.infer("grown", _ONE, model_version="2").get_response().model_version
    with pytest.raises(InferenceServerException, match="no version `3`; it has `2`, `10`"):
        session.infer("grown", _ONE, model_version="3")
    echo(tiny, home / "plain", session.folder / "libraries")
    (home / "out").symlink_to(session.folder / "echo")
    shutil.copytree(home / "grown" / "2", home / "grown" / "11")
    shutil.rmtree(home / "grown" / "2")
    client.load_model("grown")
    names = {(one.name, one.version) for one in client.get_model_repository_index().models}

    shutil.copytree(home / "grown" / "10", home / "late" / "3")
    with Client(session.daemon.root / "predict.sock", timeout_s=60) as envd:
        late = envd.load_model("late")

    assert (newest, older) == ("10", "2")
    assert (late.name, late.path) == ("late", str(home / "late" / "3"))
    assert session.infer("grown", _ONE).get_response().model_version == "11"
    assert session.infer("plain", _ONE).get_response().model_version == "1"
    assert {("grown", "10"), ("grown", "11"), ("plain", "1")} <= names
    assert not {("grown", "2"), ("out", "1")} & names
    assert list(client.get_model_metadata("grown").versions) == ["10", "11"]
    with pytest.raises(InferenceServerException, match="no version `2`"):
        session.infer("grown", _ONE, model_version="2")


def test_what_goes_from_the_repository_while_it_is_loaded_is_not_served(
    session: Session, tiny: Tiny, tmp_path: Path
) -> None:
    client, place = session.client, session.folder / "repository" / "going"
    loader = echo(tiny, place / "1", session.folder / "libraries") / "code" / "tiny_loader.py"
    begun, end = tmp_path / "begun", tmp_path / "end"
    wait = f"while not os.path.exists({str(end)!r}):\n    time.sleep(0.01)\n"
    text = f"import os, time\nopen({str(begun)!r}, 'w').close()\n{wait}"
    loader.write_text(text + loader.read_text())

    with ThreadPoolExecutor(1) as threads:
        loading = threads.submit(client.load_model, "going")
        wait_for(begun.exists)
        shutil.move(place, tmp_path / "away")
        client.load_model("grown")
        end.touch()
        with pytest.raises(InferenceServerException, match="unloaded while it was being loaded"):
            loading.result()
    home = place.parent
    shutil.move(home, tmp_path / "home")
    client.load_model("echo")
    with pytest.raises(InferenceServerException, match=r"folder .* cannot be read"):
        client.load_model("going")
    shutil.move(tmp_path / "home", home)
    shutil.move(tmp_path / "away", place)
    client.load_model("going")

    assert client.is_model_ready("going")


def test_many_are_asked_at_once_and_each_has_its_answer(session: Session) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    for number in range(20):
        session.client.async_infer(
            "batched",
            [tensor("x", np.array([[number]]))],
            lambda result, error: answers.put((result, error)),
            request_id=str(number),
        )
    found = [answers.get(timeout=60) for _ in range(20)]

    assert all(error is None for _, error in found)
    told = {one.get_response().id: one.as_numpy("output-1").item() for one, _ in found}
    assert told == {str(number): number for number in range(20)}


def test_a_stream_answers_each_when_it_can_and_outlives_errors(
    session: Session, tmp_path: Path
) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    begun, end = tmp_path / "begun", tmp_path / "end"
    slow = {"do": "wait", "begun": str(begun), "end": str(end)}
    session.infer("bare", _ONE)
    session.client.start_stream(lambda result, error: answers.put((result, error)))
    session.client.async_stream_infer("echo", [_ONE], request_id="slow", parameters=slow)
    session.client.async_stream_infer("bare", [_ONE], request_id="quick")
    session.client.async_stream_infer("nobody", [_ONE], request_id="unknown")
    session.client.async_stream_infer("bare", [_ONE], request_id="bad", parameters={"do": "raise"})
    first = [answers.get(timeout=60) for _ in range(3)]
    end.touch()
    last, error = answers.get(timeout=60)
    session.client.stop_stream()

    assert error is None
    assert last.get_response().id == "slow"
    assert {one.get_response().id for one, _ in first if one} == {"quick"}
    messages = sorted(str(error) for _, error in first if error)
    assert "MODEL_NOT_FOUND: no served model is called `nobody`" in messages[0]
    assert "MODEL_RAISED: the model raised RuntimeError: it was asked to" in messages[1]


def test_whoever_wants_the_status_of_an_error_gets_it_and_the_end_of_the_stream(
    stub: Any,
) -> None:
    asked = [service_pb2.ModelInferRequest(model_name="nobody", id="1")]
    plain = next(stub.ModelStreamInfer(iter(asked)))
    with pytest.raises(grpc.RpcError) as raised:
        next(stub.ModelStreamInfer(iter(asked), metadata=[("triton_grpc_error", "true")]))

    assert "MODEL_NOT_FOUND" in plain.error_message
    assert plain.infer_response.id == "1"
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_model_that_streams_answers_a_request_item_by_item(session: Session) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client = session.client
    client.start_stream(lambda result, error: answers.put((result, error)))
    client.async_stream_infer("talks", [_ONE], request_id="a", enable_empty_final_response=True)
    found = [answers.get(timeout=60)[0].get_response() for _ in range(4)]
    client.async_stream_infer("talks", [_ONE], request_id="b", parameters={"do": "raise"})
    *said, (last, error) = [answers.get(timeout=60) for _ in range(3)]
    client.async_stream_infer("talks", [_ONE], request_id="c", parameters={"count": 0})
    client.async_stream_infer("bare", [_ONE], request_id="d")
    plain = answers.get(timeout=60)[0].get_response()
    client.stop_stream()

    texts = [[(one.name, one.datatype) for one in answer.outputs] for answer in found]
    assert texts == [[("output-1", "BYTES")], [("number", "INT64")], [("output-1", "BYTES")], []]
    assert {one.id for one in found} == {"a"}
    is_final = [one.parameters["triton_final_response"].bool_param for one in found]
    assert is_final == [False, False, False, True]
    assert [one.get_response().id for one, _ in said] == ["b", "b"]
    assert last is None
    assert "MODEL_RAISED: the model raised RuntimeError: two were enough" in str(error)
    assert (plain.id, plain.parameters["triton_final_response"].bool_param) == ("d", True)
    # Asked for one answer, it is not guessed at.
    assert session.infer("talks", _ONE).as_numpy("output-1").tolist() == [[1.5]]
    config = client.get_model_config("talks").config
    assert config.model_transaction_policy.decoupled
    assert not client.get_model_config("bare").config.model_transaction_policy.decoupled


def test_answers_that_nobody_takes_are_bounded(session: Session, stub: Any) -> None:
    one = typed("INT32", "int_contents", [1], [1])
    one.parameters["do"].string_param = "long"
    are_sent, limit = threading.Event(), 180 << 20

    def requests() -> Iterator[Any]:
        yield from [one] * 60
        are_sent.set()

    before = taken.resident(session.daemon.pid)
    answers = stub.ModelStreamInfer(requests())
    wait_for(are_sent.is_set)
    # Nobody says when the last of them is there.
    end, grown = time.monotonic() + 3, 0
    while time.monotonic() < end and grown < limit:
        grown = max(grown, taken.resident(session.daemon.pid) - before)
        time.sleep(0.01)
    errors = {answer.error_message.partition(":")[0] for answer in answers}

    assert grown < limit
    assert errors <= {"", "IN_FLIGHT_FULL"}


def test_so_it_is_in_an_event_loop(session: Session) -> None:
    async def asked() -> tuple[Any, list[str]]:
        async with aio.InferenceServerClient(session.target) as client:

            async def requests():
                for name in ("echo", "nobody", "bare"):
                    yield {"model_name": name, "inputs": [_ONE], "request_id": name}

            answer, *_ = await asyncio.gather(*(client.infer("echo", [_ONE]) for _ in range(5)))
            stream = client.stream_infer(requests())
            return answer, [
                str(error) if error else one.get_response().id async for one, error in stream
            ]

    answer, streamed = asyncio.run(asked())

    assert answer.as_numpy("output-1").tolist() == [[1.5]]
    assert {"echo", "bare"} <= set(streamed)
    assert any("MODEL_NOT_FOUND" in one for one in streamed)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_what_is_compressed_is_understood(session: Session, algorithm: str) -> None:
    sent = np.zeros((1000, 100))

    back = session.infer("echo", tensor("x", sent), compression_algorithm=algorithm)

    np.testing.assert_array_equal(back.as_numpy("output-1"), sent)


def _triton_files() -> list[FileDescriptorProto]:
    found = []
    for module in (service_pb2, model_config_pb2):
        found.append(FileDescriptorProto())
        module.DESCRIPTOR.CopyToProto(found[-1])
    return found


def _fields(*files: FileDescriptorProto) -> dict[str, Any]:
    """Return what each field is on the wire."""
    found = {}
    ahead = [("", one) for file in files for one in file.message_type]
    while ahead:
        prefix, one = ahead.pop()
        for field in one.field:
            found[f"{prefix}{one.name}.{field.name}"] = (field.number, field.label, field.type)
        ahead += [(f"{prefix}{one.name}.", below) for below in one.nested_type]
    return found


def test_reflection_tells_of_it_and_every_call_has_a_role(session: Session) -> None:
    name = "inference.GRPCInferenceService"
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=name),
    ]
    with grpc.insecure_channel(f"unix:{session.daemon.root}/admin.sock") as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        listed, described = stub.ServerReflectionInfo(iter(asked))

    file = FileDescriptorProto.FromString(
        described.file_descriptor_response.file_descriptor_proto[0]
    )
    methods = {f"/{name}/{one.name}" for one in file.service[0].method}
    own, theirs = _fields(file), _fields(*_triton_files())
    beyond = set(own) - set(theirs)
    assert {key for key in own if key not in beyond and own[key] != theirs[key]} == set()
    # Those are MLServer's.
    assert all(re.match(r"ModelMetadataResponse\..*[pP]arameters", key) for key in beyond)
    assert name in {one.name for one in listed.list_services_response.service}
    assert methods == {one for one in ROLES if one.startswith(f"/{name}/")}


# Over TCP.


def test_over_tcp_there_is_the_protocol_and_health_and_nothing_else(session: Session) -> None:
    address = json.loads((session.daemon.root / "daemon.json").read_text())["grpc"]
    with triton.InferenceServerClient(address) as client:
        answer = client.infer("echo", [_ONE])
        with pytest.raises(InferenceServerException, match="no served model is called") as raised:
            client.infer(f"{session.folder}/echo", [_ONE])
        is_live = client.is_server_live()
    with grpc.insecure_channel(address) as channel:
        asked = health_pb2.HealthCheckRequest(service="inference.GRPCInferenceService")
        health = health_pb2_grpc.HealthStub(channel).Check(asked)
        with pytest.raises(grpc.RpcError) as unknown:
            channel.unary_unary("/envd.v1.Predictions/Predict")(b"")

    assert answer.as_numpy("output-1").tolist() == [[1.5]]
    assert raised.value.status() == "StatusCode.NOT_FOUND"
    assert is_live
    assert address.startswith("127.0.0.1:")
    assert health.status == health_pb2.HealthCheckResponse.SERVING
    assert unknown.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_where_it_is_served_is_said_at_the_start_and_none_but_this_machine_may_ask(
    tmp_path: Path, home: Path, tiny: Tiny
) -> None:
    envd = f"{Path(sys.executable).parent}/envd"
    env = environment(tmp_path / "root", home, **tiny.settings)
    with subprocess.Popen(
        [envd, "--grpc", "localhost:0"], env=env, stdout=subprocess.PIPE, text=True
    ) as process:
        said = [process.stdout.readline() for _ in range(4)]
        process.terminate()
    refused = subprocess.run(
        [envd, "--grpc", "0.0.0.0:8001"], env=env, capture_output=True, text=True, check=False
    )

    assert re.fullmatch(r"  grpc     localhost:[1-9]\d+\n", said[3])
    assert refused.returncode == 2
    assert "--grpc: `daemon.grpc` is 0.0.0.0:8001" in refused.stderr
    assert "takes `access.tls_cert` and `access.tls_key`" in refused.stderr


def test_whoever_may_only_predict_loads_what_the_settings_offer(
    session: Session, tiny: Tiny, tmp_path: Path
) -> None:
    with Client(session.daemon.root / "predict.sock", timeout_s=60) as envd:
        envd.load_model(tiny.model(tmp_path / "given"), name="given")
        answer = session.infer("given", _ONE)
        with pytest.raises(InferenceServerException, match="ask on the admin socket"):
            session.client.unload_model("given")
        with triton.InferenceServerClient(f"unix:{session.daemon.root}/admin.sock") as admin:
            admin.unload_model("given")
    with pytest.raises(InferenceServerException, match="no served model is called `given`"):
        session.infer("given", _ONE)

    assert answer.as_numpy("output-1").tolist() == [[b'"2.0"'], [b"[[1.5]]"]]


_ONE = tensor("x", np.array([[1.5]]))
_TYPED = [
    ("BOOL", "bool_contents", [True, False]),
    ("INT8", "int_contents", [-128, 127]),
    ("INT16", "int_contents", [-(2**15), 1]),
    ("INT32", "int_contents", [-(2**31), 1]),
    ("INT64", "int64_contents", [-(2**63), 1]),
    ("UINT8", "uint_contents", [255, 0]),
    ("UINT16", "uint_contents", [65535, 0]),
    ("UINT32", "uint_contents", [2**32 - 1, 0]),
    ("UINT64", "uint64_contents", [2**64 - 1, 0]),
    ("FP32", "fp32_contents", [0.5, -1.0]),
    ("FP64", "fp64_contents", [0.1, 1e300]),
    ("BYTES", "bytes_contents", [b"a", b"\xff\x00"]),
]


def typed(datatype: str, field: str, values: list[Any], shape: list[int], name: str = "x") -> Any:
    """Return a request as MLServer's clients send it."""
    found = service_pb2.ModelInferRequest(model_name="echo", id="7")
    one = found.inputs.add(name=name, datatype=datatype, shape=shape)
    getattr(one.contents, field).extend(values)
    return found


@pytest.fixture
def stub(session: Session) -> Iterator[Any]:
    with grpc.insecure_channel(session.target) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


@pytest.mark.parametrize(("datatype", "field", "values"), _TYPED)
def test_what_comes_typed_is_answered_typed(
    stub: Any, datatype: str, field: str, values: list[Any]
) -> None:
    answer = stub.ModelInfer(typed(datatype, field, values, [2, 1]))

    (output,) = answer.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("output-1", datatype, [2, 1])
    assert list(getattr(output.contents, field)) == values
    assert answer.id == "7"
    assert not answer.raw_output_contents
    assert answer.parameters["content_type"].string_param == "np"


@pytest.mark.parametrize(
    ("datatype", "field", "value"),
    [
        ("BOOL", "bool_contents", True),
        ("INT64", "int64_contents", -7),
        ("FP64", "fp64_contents", 0.1),
        ("BYTES", "bytes_contents", b"x"),
    ],
)
def test_so_is_what_is_long(stub: Any, datatype: str, field: str, value: Any) -> None:
    values = [value] * 200_000

    answer = stub.ModelInfer(typed(datatype, field, values, [len(values), 1]))

    assert list(getattr(answer.outputs[0].contents, field)) == values


def _elsewhere() -> Any:
    found = typed("INT32", "int_contents", [], [1])
    found.inputs[0].parameters["shared_memory_region"].string_param = "a"
    return found


_REFUSED = [
    (typed("INT8", "int_contents", [128], [1, 1]), "no INT8"),
    (typed("INT32", "int64_contents", [1], [1, 1]), "only `int_contents` may hold"),
    (typed("FP16", "fp32_contents", [1], [1, 1]), "only raw contents"),
    (typed("INT32", "int_contents", [1], [2, 1]), "take 8"),
    (typed("INT32", "int_contents", [1], [-1, 1]), "sizes of 0 or more"),
    (typed("INT32", "int_contents", [1], [2**61, 2**61]), "take"),
    (typed("INT32", "int_contents", [1], [1] * 33), "over 32 dimensions"),
    (typed("BYTES", "bytes_contents", [b"a", b"b"], [3, 1]), "has 2 elements"),
    (typed("COMPLEX", "fp32_contents", [1], [1, 1]), "only raw contents"),
    (service_pb2.ModelInferRequest(model_name="echo"), "no input"),
    (_elsewhere(), "no shared memory for `x`"),
    (typed("BOOL", "bool_contents", [True], [2], name="x" * (1 << 20)), "`xxxx"),
]


@pytest.mark.parametrize(("request_", "why"), _REFUSED)
def test_what_does_not_fit_is_refused_and_says_why(stub: Any, request_: Any, why: str) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        stub.ModelInfer(request_)

    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert why in raised.value.details()


@pytest.mark.parametrize(
    "method",
    [
        "inference.GRPCInferenceService/ModelInfer",
        "inference.GRPCInferenceService/ModelStreamInfer",
        "envd.v1.Predictions/Predict",
        "envd.v1.Environments/WatchEnvironment",
    ],
)
def test_what_is_no_message_is_refused(session: Session, method: str) -> None:
    with (
        grpc.insecure_channel(session.target) as channel,
        pytest.raises(grpc.RpcError, match="no message of its protocol") as raised,
    ):
        list(channel.stream_stream(f"/{method}")(iter([b"\xff"])))

    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def _with(**parts: Any) -> Any:
    return service_pb2.ModelInferRequest(model_name="echo", **parts)


_INPUT = service_pb2.ModelInferRequest.InferInputTensor(datatype="INT64", shape=[1])
_VALUE = service_pb2.InferParameter(int64_param=1)
_HEAVY = [
    (lambda: _with(inputs=[_INPUT] * 300_000), "over 25000 tensors and parameters"),
    (
        lambda: _with(
            outputs=[service_pb2.ModelInferRequest.InferRequestedOutputTensor(name="x")] * 300_000
        ),
        "over 25000 tensors and parameters",
    ),
    (
        lambda: _with(parameters={str(number): _VALUE for number in range(100_000)}),
        "over 25000 tensors and parameters",
    ),
    (lambda: _with(inputs=[_INPUT], raw_input_contents=[b""] * 1_000_000), "more raw contents"),
    (lambda: typed("INT64", "int64_contents", [1], [1] * 1_000_000), "over 32 dimensions"),
    (lambda: typed("INT64", "int64_contents", [1] * 1_000_000, [1]), "`daemon.max_message` allows"),
    (lambda: typed("BYTES", "bytes_contents", [b""] * 2_000_000, [1]), "`daemon.max_message`"),
]


@pytest.mark.parametrize(("made", "why"), _HEAVY, ids=[why for _, why in _HEAVY])
def test_what_would_take_many_times_its_size_is_refused(
    session: Session, stub: Any, made: Any, why: str
) -> None:
    request = made()
    assert request.ByteSize() <= 4 << 20
    before = taken.resident(session.daemon.pid)

    with pytest.raises(grpc.RpcError, match=re.escape(why)):
        stub.ModelInfer(request)

    assert taken.resident(session.daemon.pid) - before < 100 << 20


def test_raw_contents_pass_beside_their_messages(tmp_path: Path) -> None:
    program = Path(__file__).with_name("check_laden.py")
    home = program.parent.parent
    subprocess.run([sys.executable, program], cwd=tmp_path, env={"PYTHONPATH": home}, check=True)


@pytest.mark.parametrize("count", [1, 3])
def test_so_do_those_that_are_large(session: Session, count: int) -> None:
    sent = [np.random.default_rng(one).random((100_000 // count, 2)) for one in range(count)]
    inputs = [tensor(f"x{place}", one) for place, one in enumerate(sent)]
    answer = session.infer("echo", *inputs)
    names = ["output-1"] if count == 1 else [f"x{place}" for place in range(count)]

    for name, one in zip(names, sent, strict=True):
        np.testing.assert_array_equal(answer.as_numpy(name), one)


def test_what_is_too_large_is_refused(session: Session) -> None:
    with pytest.raises(InferenceServerException) as large:
        session.infer("echo", tensor("x", np.zeros((1 << 20, 1))))
    answer = {"do": "large"}
    with pytest.raises(InferenceServerException, match="more than the 4194304") as answered:
        session.infer("echo", _ONE, parameters=answer)

    assert large.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
    assert answered.value.status() == "StatusCode.RESOURCE_EXHAUSTED"


def test_only_the_outputs_that_are_asked_for_are_sent(session: Session) -> None:
    two = [tensor("a", np.array([[1]])), tensor("b", np.array([[2.5]]))]
    wanted = [triton.InferRequestedOutput("b")]
    answer = session.infer("echo", *two, outputs=wanted)
    with pytest.raises(InferenceServerException, match="no output `c`; it answers a, b"):
        session.infer("echo", *two, outputs=[triton.InferRequestedOutput("c")])
    shared = triton.InferRequestedOutput("a")
    shared.set_shared_memory("region", 8)
    with pytest.raises(InferenceServerException, match="no shared memory"):
        session.infer("echo", *two, outputs=[shared])
    counted = triton.InferRequestedOutput("a", class_count=1)
    with pytest.raises(InferenceServerException, match="no classification"):
        session.infer("echo", *two, outputs=[counted])

    assert [one.name for one in answer.get_response().outputs] == ["b"]
    assert answer.as_numpy("b").tolist() == [[2.5]]
    assert answer.get_response().parameters["content_type"].string_param == "dict"


def test_parameters_are_params_of_the_model_but_for_those_of_the_protocol(
    session: Session,
) -> None:
    given = {"do": "params", "top": 3, "share": 0.5, "is_on": True}
    answer = session.infer("echo", _ONE, parameters=given, priority=1, timeout=10**9)

    told = [one.decode() for one in answer.as_numpy("output-1").ravel()]
    assert told == ["do='params'", "is_on=True", "share=0.5", "top=3"]
