"""What `mlflow models serve` answers, envd answers: the same requests to both."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import wait_for
from tests.web import served

pytestmark = pytest.mark.slow
JSON, CSV, PARQUET = "application/json", "text/csv", "application/vnd.apache.parquet"
START_S = 120
# Of the model with a signature: its columns are a, a double, and b, a long.
_MODEL = """
import datetime
import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST


class Model(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        if isinstance(model_input, pd.DataFrame) and "a" in model_input:
            first = model_input["a"].iloc[0]
            if first == 666:
                raise ValueError("no good")
            if first == 667:
                raise MlflowException("nowhere", RESOURCE_DOES_NOT_EXIST)
            if first == 668:
                return np.array([np.nan, np.inf, 1.0])
            if first == 669:
                return pd.DataFrame({"x": [1.5], "t": [pd.Timestamp(2026, 1, 2)]})
            if first == 670:
                return {"b": b"bytes", "d": datetime.date(2026, 1, 2), "n": np.int64(3)}
            if first == 671:
                return object()
            if first == 672:
                return pd.Series([1, 2], name="s")
            if first == 673:
                return [params]
            return model_input["a"] * 2 + model_input["b"]
        if isinstance(model_input, pd.DataFrame):
            return model_input
        if isinstance(model_input, dict) and "messages" in model_input:
            return {"choices": model_input["messages"], "rest": sorted(model_input)}
        return model_input


mlflow.models.set_model(Model())
"""


def split(*rows: list[Any], columns: tuple[str, ...] = ("a", "b")) -> dict[str, Any]:
    return {"dataframe_split": {"columns": columns, "data": rows}}


def parquet(**columns: list[Any]) -> bytes:
    import pandas as pd

    file = io.BytesIO()
    pd.DataFrame(columns).to_parquet(file)
    return file.getvalue()


GOOD = split([1.5, 2], [0.5, 3])
CASES: list[tuple[str, str, Any]] = [
    # the model, the content type, the body
    ("signed", JSON, GOOD),
    ("signed", f"{JSON}; charset=utf-8", GOOD),
    ("signed", f"{JSON};charset=UTF-8", GOOD),
    (
        "signed",
        JSON,
        {"dataframe_split": {"columns": ["a", "b"], "index": [7], "data": [[1.5, 2]]}},
    ),
    ("signed", JSON, {"dataframe_records": [{"a": 1.5, "b": 2}, {"b": 3, "a": 1}]}),
    ("signed", JSON, {"instances": [{"a": 1.5, "b": 2}]}),
    ("signed", JSON, {"inputs": {"a": [1.5], "b": [2]}}),
    ("signed", JSON, {"inputs": [{"a": 1.5, "b": 2}]}),
    ("signed", JSON, {"inputs": [[1.5, 2]]}),
    ("signed", JSON, {"instances": [[1.5, 2]]}),
    ("signed", JSON, {**GOOD, "other": 1}),
    ("signed", JSON, {**GOOD, "params": {"k": 3}}),
    ("signed", JSON, {**split([673.0, 1]), "params": {"k": 3}}),
    ("signed", JSON, {**split([673.0, 1]), "params": {"k": "no number"}}),
    ("signed", JSON, {**split([673.0, 1]), "params": {"unknown": 1}}),
    ("signed", JSON, {**split([673.0, 1]), "params": None}),
    ("signed", JSON, {**GOOD, "params": 1}),
    ("signed", JSON, split([1.5, 2, 3], columns=("a", "b", "c"))),
    ("signed", JSON, split([1.5], columns=("a",))),
    ("signed", JSON, split(["x", 2])),
    ("signed", JSON, split([1.5, 2.5])),
    ("signed", JSON, split([None, 2])),
    ("signed", JSON, split([1.5, None])),
    ("signed", JSON, split()),
    ("signed", JSON, {"dataframe_split": {"columns": ["a"], "data": [[1.5, 2]]}}),
    ("signed", JSON, {"dataframe_split": [1]}),
    ("signed", JSON, {"dataframe_split": {}}),
    ("signed", JSON, {"dataframe_records": {"a": 1}}),
    ("signed", JSON, {"dataframe_records": [1]}),
    ("signed", JSON, {"dataframe_records": []}),
    *(("signed", JSON, split([float(code), 1])) for code in (666, 667, 668, 669, 670, 672)),
    ("signed", JSON, {"messages": [{"role": "user"}], "k": 3, "x": 1}),
    ("signed", JSON, {}),
    ("signed", JSON, {**GOOD, "inputs": 1}),
    ("signed", JSON, [1]),
    ("signed", JSON, [{"a": 1.5, "b": 2}]),
    ("signed", JSON, {"columns": ["a", "b"], "data": [[1.5, 2]]}),
    ("signed", JSON, 1),
    ("signed", JSON, "text"),
    ("signed", JSON, None),
    ("signed", JSON, b""),
    ("signed", JSON, b"{"),
    ("signed", JSON, b"\xff\xfe"),
    ("signed", JSON, b'{"dataframe_split": {"columns": ["a", "b"], "data": [[NaN, 2]]}}'),
    ("signed", CSV, b"a,b\n1.5,2\n0.5,3\n"),
    ("signed", CSV, b"b,a\n2,1.5\n"),
    ("signed", CSV, b"x,y\n1.5,2\n"),
    ("signed", CSV, b"a,b\nx,2\n"),
    ("signed", CSV, b"a,b\n"),
    ("signed", CSV, b""),
    ("signed", CSV, b"\xff"),
    ("signed", CSV, b"a,b\n666,2\n"),
    ("signed", PARQUET, parquet(a=[1.5, 0.5], b=[2, 3])),
    ("signed", PARQUET, parquet(a=["x"], b=[2])),
    ("signed", PARQUET, parquet(x=[1.5])),
    ("signed", PARQUET, b"no parquet"),
    ("signed", PARQUET, b""),
    ("signed", f"{JSON}; charset=latin-1", GOOD),
    ("signed", f"{JSON}; format=pandas-split", GOOD),
    ("signed", "text/plain", b"x"),
    ("signed", "application/octet-stream", b"x"),
    ("plain", JSON, {"inputs": [1, 2]}),
    ("plain", JSON, {"inputs": "text"}),
    ("plain", JSON, {"inputs": None}),
    ("plain", JSON, {"inputs": {"x": [[1, 2]], "y": ["a"]}}),
    ("plain", JSON, {"instances": [[1, 2], [3, 4]]}),
    ("plain", JSON, {"instances": [{"x": 1}, {"x": 2}]}),
    ("plain", JSON, {"instances": [{"x": 1}, {"y": 2}]}),
    ("plain", JSON, split(["2026-01-02", 1], columns=("t", "u"))),
    ("plain", JSON, {"dataframe_records": [{"u": 1}, {"v": 2}]}),
    ("plain", JSON, {"inputs": [1], "params": {"k": 3}}),
    ("plain", JSON, {"messages": [1], "k": 3}),
    ("plain", JSON, {"prompt": "x"}),
    ("plain", JSON, {"input": ["x"], "inputs": [1]}),
    ("plain", CSV, b"t,u\n2026-01-02,1\n"),
    ("plain", PARQUET, parquet(t=["x"], u=[1])),
]


@dataclass(frozen=True)
class Both:
    """Where each of the models is served by MLflow, and all by envd."""

    mlflow: dict[str, str]
    envd: str


@pytest.fixture(scope="module")
def both(shared_root: Path, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    folder = tmp_path_factory.mktemp("mlflow")
    models = _saved(folder)
    with contextlib.ExitStack() as stack:
        urls = {name: stack.enter_context(_mlflow(path)) for name, path in models.items()}
        (folder / "root").symlink_to(shared_root)
        shared_root.mkdir(exist_ok=True)
        web = stack.enter_context(served(folder, home, models))
        with web.daemon.client() as client:
            for name in models:
                client.load_model(name)
        for url in urls.values():
            wait_for(lambda url=url: _ask("GET", f"{url}/ping")[0] == 200, START_S)
        yield Both(urls, web.url)


def _saved(folder: Path) -> dict[str, Path]:
    """Save the models by the mlflow of the tests, whose version they ask for."""
    code = folder / "code.py"
    code.write_text(_MODEL)
    script = f"""
import mlflow, sys
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
inputs = Schema([ColSpec("double", "a"), ColSpec("long", "b")])
signature = ModelSignature(inputs, params=ParamSchema([ParamSpec("k", "long", 1)]))
for name, its in (("signed", signature), ("plain", None)):
    mlflow.pyfunc.save_model({str(folder)!r} + "/" + name, python_model={str(code)!r},
        signature=its, pip_requirements=["mlflow==" + mlflow.__version__])
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=folder, capture_output=True)
    return {name: folder / name for name in ("signed", "plain")}


@contextlib.contextmanager
def _mlflow(model: Path) -> Iterator[str]:
    """Serve *model* by MLflow itself, in the environment of the tests."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    programs = Path(sys.executable).parent
    argv = [f"{programs}/mlflow", "models", "serve", "-m", str(model), "-p", str(port)]
    with (model.parent / f"{model.name}.log").open("w") as log:
        process = subprocess.Popen(
            [*argv, "-h", "127.0.0.1", "--env-manager", "local"],
            env=os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"},
            cwd=model.parent,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _ask(
    method: str, url: str, body: bytes | None = None, content_type: str | None = None
) -> tuple[int, str, Any]:
    """Return the status, the type and the JSON of an answer, None for what is no JSON."""
    headers = {"Content-Type": content_type} if content_type else {}
    asked = urllib.request.Request(url, body, headers, method=method)
    try:
        with urllib.request.urlopen(asked, timeout=60) as answer:
            found = answer.status, answer.headers.get_content_type(), answer.read()
    except urllib.error.HTTPError as error:
        with error:
            found = error.code, error.headers.get_content_type(), error.read()
    except OSError:
        return 0, "", None
    if found[1] != JSON or not found[2].strip():
        return found[0], found[1], None
    # NaN and infinities are no JSON.
    return found[0], found[1], json.loads(found[2], parse_constant=lambda _: None)


def _comparable(document: Any) -> Any:
    """Return *document* without the words of an error."""
    if not isinstance(document, dict) or "error_code" not in document:
        return document
    return document | {key: "" for key in ("message", "stack_trace") if key in document}


@pytest.mark.parametrize(("model", "content_type", "body"), CASES)
def test_an_invocation_is_answered_alike(both: Both, model: str, content_type: str, body) -> None:
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()

    theirs = _ask("POST", f"{both.mlflow[model]}/invocations", sent, content_type)
    ours = _ask("POST", f"{both.envd}/models/{model}/invocations", sent, content_type)

    assert ours[:2] == theirs[:2]
    assert _comparable(ours[2]) == _comparable(theirs[2])


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/invocations"), ("POST", "/ping"), ("DELETE", "/health"), ("PUT", "/version")],
)
def test_what_there_is_no_route_for_is_answered_alike(both: Both, method: str, path: str) -> None:
    theirs = _ask(method, f"{both.mlflow['plain']}{path}")

    assert _ask(method, f"{both.envd}/models/plain{path}") == theirs
    assert _ask(method, f"{both.envd}{path}") == theirs


def test_health_and_version_are_told_alike(both: Both) -> None:
    for path in ("/ping", "/health", "/version"):
        urls = [f"{url}{path}" for url in (both.mlflow["plain"], f"{both.envd}/models/plain")]
        answers = []
        for url in urls:
            with urllib.request.urlopen(url, timeout=60) as answer:
                answers.append((answer.status, answer.read()))
        assert answers[0] == answers[1]


def test_where_mlflow_is_wrong_envd_is_not(both: Both) -> None:
    def statuses(model: str, body: bytes, content_type: str) -> tuple[int, int]:
        urls = both.mlflow[model], f"{both.envd}/models/{model}"
        theirs, ours = (_post(f"{url}/invocations", body, content_type) for url in urls)
        return theirs, ours

    # An answer that has no JSON; no content type; one in other letters; UTF-16 that is to be UTF-8.
    assert statuses("signed", json.dumps(split([671.0, 1])).encode(), JSON) == (500, 400)
    assert statuses("plain", b'{"inputs": 1}', "") == (500, 200)
    assert statuses("plain", b'{"inputs": 1}', "Application/JSON") == (415, 200)
    assert statuses("plain", '{"inputs": 1}'.encode("utf-16"), JSON) == (200, 400)


def _post(url: str, body: bytes, content_type: str) -> int:
    """Return the status of an answer; without a content type none is sent."""
    parsed = urllib.parse.urlsplit(url)
    with contextlib.closing(http.client.HTTPConnection(parsed.netloc, timeout=60)) as connection:
        headers = {"Content-Type": content_type} if content_type else {}
        connection.request("POST", parsed.path, body, headers)
        return connection.getresponse().status
