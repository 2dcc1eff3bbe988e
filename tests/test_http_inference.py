"""The Open Inference Protocol over REST: a real client of Triton's has a whole session."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

import envd
from envd import errors
from envd.errors import EnvdError
from envd.serve.http import failures
from tests.conftest import Envctl, environment, one_python
from tests.test_oip import _ARRAYS, _datatype, echo, packages
from tests.tiny import Tiny
from tests.web import JSON, Web, served

HEADER = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class Session:
    """A daemon with models that have names, and a client of Triton's."""

    folder: Path
    web: Web
    client: triton.InferenceServerClient

    def infer(self, model: str, *inputs: Any, **more: Any) -> triton.InferResult:
        return self.client.infer(model, list(inputs), **more)


@pytest.fixture(scope="module")
def session(
    tmp_path_factory: pytest.TempPathFactory, home: Path, tiny: Tiny, tools: Path
) -> Iterator[Session]:
    folder = tmp_path_factory.mktemp("rest")
    libraries = packages(folder / "libraries")
    signature = (
        "signature:\n"
        """  inputs: '[{"name": "age", "type": "long"}, {"name": "who", "type": "string"}]'\n"""
        """  outputs: '[{"type": "tensor", "tensor-spec":"""
        """ {"dtype": "float32", "shape": [-1, 3]}}]'\n"""
    )
    models = {
        "echo": echo(tiny, folder / "echo", libraries),
        "bare": echo(tiny, folder / "bare", folder / "nothing"),
        "signed": echo(tiny, folder / "signed", libraries, signature),
        "batched": echo(tiny, folder / "batched", libraries, "metadata:\n  envd: {batch: true}\n"),
        "lazy": echo(tiny, folder / "lazy", libraries),
        "broken": folder / "nowhere",
        "a name": folder / "bare",
        "repository": folder / "repository",
    }
    for version in ("2", "10"):
        echo(tiny, folder / "repository" / "grown" / version, libraries)
    more = {**tiny.settings, **one_python(tools), "ENVD_DAEMON__MAX_MESSAGE": "1MiB"}
    with served(folder, home, models, **more) as web:
        client = triton.InferenceServerClient(web.url.removeprefix("http://"), concurrency=8)
        yield Session(folder, web, client)
        client.close()


def tensor(array: np.ndarray, *, is_binary: bool = True, name: str = "x") -> triton.InferInput:
    found = triton.InferInput(name, list(array.shape), _datatype(array))
    found.set_data_from_numpy(array, binary_data=is_binary)
    return found


def wanted(*, is_binary: bool, name: str = "output-1") -> triton.InferRequestedOutput:
    return triton.InferRequestedOutput(name, binary_data=is_binary)


ONE = tensor(np.array([[1.5]]))


def _can_be_json(array: np.ndarray) -> bool:
    """Whether the client has JSON for *array*: not for bytes, 16 bits and NaN."""
    if array.dtype == object:
        return all(isinstance(one, str) for one in array.ravel())
    return array.dtype != np.float16 and bool(np.isfinite(array).all())


SENT = [(one, True) for one in _ARRAYS] + [(one, False) for one in _ARRAYS if _can_be_json(one)]


@pytest.mark.parametrize(("array", "is_binary"), SENT)
def test_every_datatype_comes_back_as_it_was_sent(
    session: Session, array: np.ndarray, *, is_binary: bool
) -> None:
    answer = session.infer(
        "echo", tensor(array, is_binary=is_binary), outputs=[wanted(is_binary=is_binary)]
    )

    back = answer.as_numpy("output-1")
    flat = [one.encode() if isinstance(one, str) else one for one in array.ravel().tolist()]
    found = [one.encode() if isinstance(one, str) else one for one in back.ravel().tolist()]
    assert back.shape == array.shape
    np.testing.assert_array_equal(np.array(found), np.array(flat, np.array(found).dtype))
    assert answer.get_output("output-1")["datatype"] == _datatype(array)


def test_it_says_what_it_is(session: Session) -> None:
    client = session.client
    server, signed = client.get_server_metadata(), client.get_model_metadata("signed")
    config = client.get_model_config("signed")

    assert client.is_server_live()
    assert client.is_server_ready()
    assert (server["name"], server["version"]) == ("envd", envd.__version__)
    assert "binary_tensor_data" in server["extensions"]
    assert (signed["versions"], signed["platform"]) == (["1"], "mlflow")
    told = [(one["name"], one["datatype"], one["shape"]) for one in signed["inputs"]]
    assert told == [("age", "INT64", [-1, 1]), ("who", "BYTES", [-1, 1])]
    assert signed["outputs"][0]["shape"] == [-1, 3]
    assert [one["data_type"] for one in config["input"]] == ["TYPE_INT64", "TYPE_STRING"]


def test_models_are_loaded_and_unloaded(session: Session) -> None:
    client = session.client

    def states() -> dict[tuple[str, str], str]:
        index = client.get_model_repository_index()
        return {(one["name"], one["version"]): one["state"] for one in index}

    before, is_ready = states(), client.is_model_ready("lazy")
    client.load_model("lazy")
    after, is_loaded = states(), client.is_model_ready("lazy")
    ready = session.web("POST", "/v2/repository/index", {"ready": True}).document
    client.unload_model("lazy")

    assert (before["lazy", "1"], is_ready) == ("UNAVAILABLE", False)
    assert (after["lazy", "1"], is_loaded) == ("READY", True)
    assert {"lazy"} <= {one["name"] for one in ready} < {name for name, _ in before}
    assert not client.is_model_ready("lazy")
    with pytest.raises(InferenceServerException, match="cannot be read") as raised:
        client.load_model("broken")
    assert raised.value.status() == "404"
    with pytest.raises(InferenceServerException, match="send no parameters"):
        client.load_model("lazy", config="{}")
    assert client.is_model_ready("nobody") is False


def test_only_models_of_the_settings_are_loaded(session: Session) -> None:
    with session.web.daemon.client() as client:
        client.load_model(session.folder / "bare", name="given")
    found = session.web("POST", "/v2/repository/models/given/unload", b"")
    path = session.web("POST", "/v2/repository/models/.%2Fbare/load", b"")

    assert (found.status, found.headers["x-envd-reason"]) == (403, "PERMISSION_DENIED")
    assert path.status == 404


def test_a_repository_serves_its_newest_version_and_the_others_by_number(session: Session) -> None:
    newest = session.infer("grown", ONE).get_response()["model_version"]
    older = session.infer("grown", ONE, model_version="2").get_response()["model_version"]

    assert (newest, older) == ("10", "2")
    assert session.client.get_model_metadata("grown", "2")["versions"] == ["2", "10"]
    assert session.client.is_model_ready("grown", "10")
    with pytest.raises(InferenceServerException, match="no version `3`; it has `2`, `10`"):
        session.infer("grown", ONE, model_version="3")


def test_many_are_asked_at_once_and_each_has_its_answer(session: Session) -> None:
    asked = [
        session.client.async_infer("batched", [tensor(np.array([[one]]))], request_id=str(one))
        for one in range(20)
    ]

    found = [one.get_result() for one in asked]

    told = [(one.get_response()["id"], one.as_numpy("output-1").item()) for one in found]
    assert told == [(str(one), one) for one in range(20)]


@pytest.mark.parametrize("request_", [None, "gzip", "deflate"])
@pytest.mark.parametrize("answer", [None, "gzip", "deflate"])
def test_what_is_compressed_is_understood(
    session: Session, request_: str | None, answer: str | None
) -> None:
    sent = np.arange(100_000).reshape(1000, 100)
    # Compressed, the request is far smaller than what it is, and the answer as well.
    back = session.infer(
        "echo",
        tensor(sent),
        outputs=[wanted(is_binary=answer != "gzip")],
        request_compression_algorithm=request_,
        response_compression_algorithm=answer,
    )

    np.testing.assert_array_equal(back.as_numpy("output-1"), sent)


def test_an_answer_is_compressed_where_that_is_asked_for_and_worth_it(session: Session) -> None:
    path, zeros = "/v2/models/echo/infer", np.zeros((100, 100)).tolist()

    def encoding(data: list[Any], accepted: str) -> str | None:
        one = {"name": "x", "datatype": "FP64", "shape": [len(data), len(data[0])], "data": data}
        headers = {**JSON, "accept-encoding": accepted}
        found = session.web("POST", path, {"inputs": [one]}, headers)
        assert found.status == 200
        plain = {"gzip": gzip.decompress, "deflate": zlib.decompress}
        unpack = plain.get(found.headers.get("content-encoding"), bytes)
        assert json.loads(unpack(found.body))["outputs"][0]["shape"] == one["shape"]
        return found.headers.get("content-encoding")

    assert [encoding(zeros, one) for one in ("gzip, deflate, br", "deflate;q=0.5", "x, GZIP")] == [
        "gzip", "deflate", "gzip",
    ]  # fmt: skip
    assert [encoding(zeros, one) for one in ("", "br", "gzip;q=0", "gzip; q=0.0")] == [None] * 4
    assert encoding([[1.0]], "gzip") is None


def test_what_does_not_unpack_is_refused(session: Session) -> None:
    body = json.dumps({"inputs": "x"}).encode()
    bomb = gzip.compress(bytes(1 << 24))
    cases = [
        ("gzip", body), ("gzip", gzip.compress(body)[:-9]), ("deflate", gzip.compress(body)),
        ("gzip", gzip.compress(body) + b"more"), ("gzip", bomb), ("br", body), ("gzip, gzip", body),
    ]  # fmt: skip

    found = [
        session.web("POST", path, sent, {**JSON, "content-encoding": encoding})
        for path in ("/v2/models/echo/infer", "/models/echo/invocations")
        for encoding, sent in cases
    ]

    assert [one.status for one in found] == [400, 400, 400, 400, 413, 415, 415] * 2
    assert all("error" in one.document for one in found[:7])
    assert b"envd_in_flight_bytes 0.0" in session.web("GET", "/metrics").body


def test_a_request_may_be_json_with_elements_in_it(session: Session) -> None:
    one = {"name": "x", "datatype": "INT32", "shape": [2, 2], "data": [[1, 2], [3, 4]]}

    found = session.web("POST", "/v2/models/a%20name/infer", {"id": "7", "inputs": [one]})

    assert found.headers["content-type"] == "application/json"
    assert HEADER.lower() not in found.headers
    document = found.document
    (output,) = document.pop("outputs")
    assert document.pop("parameters", None) in (None, {"content_type": "np"})
    assert document == {"model_name": "a name", "model_version": "1", "id": "7"}
    assert np.array(output["data"]).ravel().tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("size", "body", "said"),
    [
        ("-1", b"{}", HEADER),
        ("x", b"{}", HEADER),
        ("3", b"{}", HEADER),
        ("1" * 5000, b"{}", HEADER),
        ("2", b"{}1234", "no list of tensors"),
        ("0", b"{}", "not JSON"),
        (None, b"", "not JSON"),
        (None, b"[]", "not a JSON object"),
        (None, b'{"inputs": []}', "no input"),
        (None, b'{"inputs": [{"name": "x"}]}', "no shape"),
    ],
)
def test_what_is_no_request_is_refused(session: Session, size, body: bytes, said: str) -> None:
    headers = JSON | ({HEADER: size} if size else {})

    found = session.web("POST", "/v2/models/echo/infer", body, headers)

    assert found.status == 400
    assert said in found.document["error"]


def test_failures_have_the_form_of_the_protocol(session: Session) -> None:
    one = {"name": "x", "datatype": "INT32", "shape": [1], "data": [1]}
    asked = {"inputs": [one], "parameters": {"do": "raise"}}

    raised = session.web("POST", "/v2/models/echo/infer", asked)
    unknown = session.web("POST", "/v2/models/nobody/infer", asked)
    path = session.web("GET", "/v2/nowhere")
    method = session.web("GET", "/v2/models/echo/infer")
    index = session.web("POST", "/v2/repository/index", b"[]")

    assert (raised.status, raised.headers["x-envd-reason"]) == (500, "MODEL_RAISED")
    assert "the model raised RuntimeError: it was asked to" in raised.document["error"]
    assert (unknown.status, unknown.headers["x-envd-reason"]) == (404, "MODEL_NOT_FOUND")
    assert (path.status, path.document) == (404, {"error": "Not Found"})
    assert (method.status, method.document) == (405, {"error": "Method Not Allowed"})
    assert (index.status, index.document) == (400, {"error": "the body is no JSON object"})


def test_every_error_has_a_status() -> None:
    found = {cls: failures.of_inference(cls("m")) for cls in EnvdError.__subclasses__()}

    known = {400, 401, 403, 404, 408, 409, 413, 415, 429, 500, 503, 504}
    assert {one.status for one in found.values()} <= known
    assert all(json.loads(one.content) == {"error": "m"} for one in found.values())
    assert found[errors.ModelRaisedError].status == 500
    assert found[errors.QueueFullError].headers["retry-after"] == "1"


def test_parquet_is_read_where_the_models_environment_can(
    session: Session, tiny: Tiny, home: Path, tmp_path: Path
) -> None:
    table = pd.DataFrame({"a": [1, 2], "b": ["x", None]})
    table.to_parquet(tmp_path / "rows.parquet")
    body, kind = (tmp_path / "rows.parquet").read_bytes(), "application/vnd.apache.parquet"
    libraries = packages(tmp_path / "libraries")
    (libraries / "pyarrow").symlink_to(Path(pa.__file__).parent)
    model = echo(tiny, tmp_path / "model", libraries)
    with session.web.daemon.client() as client:
        client.load_model(model, name="tables")
        by_grpc = client.predict("tables", body, content_type=kind).predictions
    by_http = session.web("POST", "/models/tables/invocations", body, {"content-type": kind})
    root = session.web.daemon.root
    by_hand = Envctl(root, environment(root, home))(
        "predict", "-m", "tables", "-i", tmp_path / "rows.parquet"
    )
    without = session.web("POST", "/models/echo/invocations", body, {"content-type": kind})
    broken = session.web("POST", "/models/tables/invocations", b"PAR1", {"content-type": kind})

    rows = [{"a": 1, "b": "x"}, {"a": 2, "b": None}]
    assert (by_grpc, by_http.document) == (rows, {"predictions": rows})
    assert json.loads(by_hand.stdout) == {"predictions": rows}
    assert (without.status, broken.status) == (400, 400)
    assert "neither pyarrow nor fastparquet" in without.document["message"]
    assert "stack_trace" in broken.document


def test_a_body_of_tensors_is_taken_as_it_is(session: Session) -> None:
    header = {"inputs": [{"name": "x", "datatype": "FP64", "shape": [1, 2],
                          "parameters": {"binary_data_size": 16}}],
              "parameters": {"binary_data_output": True}}  # fmt: skip
    text = json.dumps(header).encode()
    sent = struct.pack("<2d", 0.5, -2.0)

    found = session.web("POST", "/v2/models/echo/infer", text + sent, {HEADER: str(len(text))})

    size = int(found.headers[HEADER.lower()])
    assert found.headers["content-type"] == "application/octet-stream"
    assert json.loads(found.body[:size])["outputs"][0]["datatype"] == "FP64"
    assert found.body[size:] == sent
