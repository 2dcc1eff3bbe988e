"""What the client sends, where it sends it and what it makes of a failure."""

from __future__ import annotations

import asyncio
import json
import math
import os
import pickle
import subprocess
import sys
import time
from concurrent import futures
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pandas as pd
import pytest
from envd_client import AsyncClient, Client, EnvdError, TryAgainError, connection, requests
from envd_client import details as envd_details
from envd_client import errors as envd_client_errors
from envd_client.answer import answer
from envd_client.attempts import Attempts
from envd_client.credentials import Credentials
from envd_client.inputs import encode
from envd_client.v1 import envd_pb2, envd_pb2_grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

import envd.errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from google.protobuf.message import Message


def sent(data: object) -> Any:
    return json.loads(encode(data)[0])


@pytest.mark.parametrize(
    ("data", "content_type", "expected"),
    [
        (b"{}", None, (b"{}", "application/json")),
        ('{"a": "é"}', None, ('{"a": "é"}'.encode(), "application/json")),
        ("a,b\n1,2", "text/csv", (b"a,b\n1,2", "text/csv")),
        (bytearray(b"a"), "text/csv", (b"a", "text/csv")),
    ],
)
def test_bytes_and_text_pass_as_they_are(
    data: object, content_type: str | None, expected: tuple[bytes, str]
) -> None:
    assert encode(data, content_type) == expected


def test_a_frame_is_sent_by_rows_with_its_index() -> None:
    frame = pd.DataFrame({"a": [1, 2], "b": [0.1 + 0.2, 1e-300], "c": ["x", "ü"]}, index=[7, 8])

    expected = {
        "columns": ["a", "b", "c"],
        "index": [7, 8],
        "data": [[1, 0.1 + 0.2, "x"], [2, 1e-300, "ü"]],
    }
    assert sent(frame) == {"dataframe_split": expected}


def test_what_is_missing_in_a_frame_is_sent_as_null() -> None:
    frame = pd.DataFrame(
        {
            "float": [1.5, float("nan")],
            "date": [pd.Timestamp("2020-01-02T03:04:05.000000006"), pd.NaT],
            "integer": pd.array([1, pd.NA], dtype="Int64"),
            "text": ["x", None],
            "category": pd.Categorical(["u", None]),
        }
    )

    rows = sent(frame)["dataframe_split"]["data"]
    assert rows == [[1.5, "2020-01-02T03:04:05.000000006", 1, "x", "u"], [None] * 5]


def test_columns_of_the_same_name_are_all_sent() -> None:
    frame = pd.DataFrame([[1, 2]], columns=["a", "a"])

    expected = {"columns": ["a", "a"], "index": [0], "data": [[1, 2]]}
    assert sent(frame) == {"dataframe_split": expected}


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pd.Series([1.5, None]), [1.5, None]),
        (pd.Series(pd.to_datetime(["2020-01-02", None])), ["2020-01-02T00:00:00", None]),
        (np.array([[1, 2], [3, 4]], dtype="int8"), [[1, 2], [3, 4]]),
        (np.array([0.5, np.nan], dtype="float32"), [0.5, None]),
        (
            np.array(["2020-01-02T03:04:05.000000006", "NaT"], dtype="datetime64[ns]"),
            ["2020-01-02T03:04:05.000000006", None],
        ),
        (np.array([b"ab"]), ["YWI="]),
    ],
)
def test_a_series_and_an_array_are_sent_as_inputs(column: object, expected: list[object]) -> None:
    assert sent(column) == {"inputs": expected}


@pytest.mark.parametrize(
    "data",
    [
        {"inputs": [1], "params": {"top": 5}},
        {"instances": [[1]]},
        {"dataframe_records": [{"a": 1}]},
        {"dataframe_split": {"data": [[1]]}},
        {"columns": ["a"], "index": [0], "data": [[1]]},
    ],
)
def test_a_scoring_document_passes_as_it_is(data: dict[str, object]) -> None:
    assert sent(data) == data


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"a": np.arange(2), "b": float("nan")}, {"a": [0, 1], "b": None}),
        ({"columns": 1, "data": 2, "price": 3}, {"columns": 1, "data": 2, "price": 3}),
        ([np.int64(1), np.float32(0.5), np.bool_(1)], [1, 0.5, True]),
        ((1, (2, pd.NA)), [1, [2, None]]),
    ],
)
def test_any_other_dict_or_list_is_sent_as_inputs(data: object, expected: object) -> None:
    assert sent(data) == {"inputs": expected}


@pytest.mark.parametrize(
    ("data", "content_type", "says"),
    [
        ([1.0, float("inf")], None, "infinity"),
        (np.array([1], dtype="timedelta64[s]"), None, "timedelta64"),
        ({"a": {1, 2}}, None, "`set`"),
        ({1, 2}, None, "`set`"),
        ({(1, 2): 3}, None, "keys"),
        (pd.DataFrame({"a": [1]}), "text/csv", "`text/csv`"),
    ],
)
def test_what_json_cannot_hold_is_refused(
    data: object, content_type: str | None, says: str
) -> None:
    with pytest.raises(envd_client_errors.PayloadInvalidError, match=says):
        encode(data, content_type)


# MLflow warns of its own type hints while it is imported.
@pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)
def test_mlflow_reads_the_frame_that_was_sent() -> None:
    from mlflow.pyfunc.scoring_server import infer_and_parse_data

    frame = pd.DataFrame({"a": [1, 2], "b": [0.1 + 0.2, None], "c": ["x", "y"]}, index=[7, 8])

    pd.testing.assert_frame_equal(infer_and_parse_data(sent(frame)), frame, check_dtype=False)


def test_the_client_imports_neither_pandas_nor_numpy() -> None:
    run_python(
        "import sys, envd_client.inputs as inputs",
        "inputs.encode([1.0, float('nan'), b''])",
        "assert not {'numpy', 'pandas', 'google.rpc', 'envd'} & sys.modules.keys()",
    )


def test_paths_of_models_become_absolute_and_names_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: list[str | Path] = ["a/b", "./a", ".", Path("a"), "/a", "a", "file:a/b", "models:/a/1"]

    expected = ["/a/b", "/a", "", "/a"]
    assert [requests.model_name(name) for name in names] == [
        *(f"{tmp_path}{path}" for path in expected),
        *("/a", "a", "file:a/b", "models:/a/1"),
    ]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/run/envd/predict.sock", "unix:/run/envd/predict.sock"),
        (Path("/run/envd/predict.sock"), "unix:/run/envd/predict.sock"),
        ("unix:/run/a b%.sock", "unix:/run/a%20b%25.sock"),
        ("unix:///run/a:b.sock", "unix:/run/a%3Ab.sock"),
        ("/run/a:b.sock", "unix:/run/a%3Ab.sock"),
        ("localhost:50051", "localhost:50051"),
        ("[::1]:50051", "[::1]:50051"),
        ("dns:///host:50051", "dns:///host:50051"),
    ],
)
def test_targets_are_spelled_as_grpc_reads_them(target: str | Path, expected: str) -> None:
    assert connection.grpc_target(target) == expected


def test_a_limit_that_no_message_keeps_to_is_refused() -> None:
    with pytest.raises(envd_client_errors.SettingsInvalidError, match="1024 or more"):
        connection.connection(
            "host:1", admin_target=None, timeout_s=1, max_message_bytes=-1, retries=0
        )


def test_a_path_too_long_for_a_socket_is_refused() -> None:
    with pytest.raises(envd_client_errors.SettingsInvalidError, match="too long"):
        connection.grpc_target("/" + "a" * 107)


@pytest.mark.parametrize("target", ["127.0.0.1:65536", "[::1]:0", "dns:///host:99999"])
def test_a_port_that_grpc_would_take_for_another_is_refused(target: str) -> None:
    with pytest.raises(envd_client_errors.SettingsInvalidError, match="no port from 1 to 65535"):
        connection.grpc_target(target)


def test_a_file_of_cas_without_a_certificate_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate\n")
    found = Credentials(tls_ca=tmp_path / "ca.pem")

    with pytest.raises(envd_client_errors.SettingsInvalidError, match="has no certificate in it"):
        found.of_channel("host:1")


def test_the_environment_says_where_the_daemon_listens(tmp_path: Path) -> None:
    # The machine's own daemon is none of this test's.
    nowhere = {"HOME": str(tmp_path)}
    runtime = {**nowhere, "XDG_RUNTIME_DIR": "/run/user/1"}

    assert connection.default_target(runtime) == "/run/user/1/envd/predict.sock"
    assert connection.default_target({**runtime, "ENVD_SOCKET": "host:1"}) == "host:1"
    with pytest.raises(envd_client_errors.SettingsInvalidError, match="ENVD_SOCKET"):
        connection.default_target(nowhere)


@pytest.mark.parametrize("variable", ["HOME", "XDG_STATE_HOME", "ENVD_ROOT"])
def test_a_daemon_that_runs_says_where_it_listens(tmp_path: Path, variable: str) -> None:
    places = {"HOME": ".local/state/envd", "XDG_STATE_HOME": "envd", "ENVD_ROOT": "."}
    root = tmp_path / places[variable]
    root.mkdir(parents=True, exist_ok=True)
    (root / "daemon.json").write_text('{"predict": "/run/there/predict.sock"}')
    environ = {"HOME": str(tmp_path), variable: str(tmp_path), "XDG_RUNTIME_DIR": "/run/user/1"}

    assert connection.default_target(environ) == "/run/there/predict.sock"


def test_the_admin_socket_lies_beside_the_other_unless_it_is_given() -> None:
    def admin_target(target: str, admin: str | None = None) -> str:
        return connection.connection(
            target, admin_target=admin, timeout_s=1, max_message_bytes=1024, retries=0
        ).admin_target

    assert admin_target("/run/a b/predict.sock") == "unix:/run/a%20b/admin.sock"
    assert admin_target("/run/predict.sock", "host:1") == "host:1"
    assert admin_target("host:1") == "host:1"


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b'{"predictions": [1], "params": 2}', [1]),
        (b"[1]", [1]),
        (b'{"choices": []}', {"choices": []}),
    ],
)
def test_predictions_are_read_from_the_answer(payload: bytes, expected: object) -> None:
    response = envd_pb2.PredictResponse(
        payload=payload, worker_origin=envd_pb2.PredictResponse.WARM, stage_seconds={"predict": 0.5}
    )

    assert answer(response).predictions == expected
    assert answer(response).worker_origin == "warm"
    assert answer(response).stage_seconds == {"predict": 0.5}


def test_details_are_read_as_the_real_classes_wrote_them() -> None:
    trailer = status(
        code_pb2.UNAVAILABLE, "WORKER_DIED", {"model": "/a", "pid": "7"}, retry_after_s=1.5
    ).SerializeToString()

    expected = envd_details.Details("WORKER_DIED", {"model": "/a", "pid": "7"}, 1.5)
    assert envd_details.decode(trailer) == expected


@pytest.mark.parametrize(
    "trailer",
    [
        b"",
        b"\xff\xff",
        status_pb2.Status(code=5, message="no").SerializeToString(),
        status_pb2.Status(
            details=[
                any_pb2.Any(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff")
            ]
        ).SerializeToString(),
    ],
)
def test_a_trailer_that_is_not_of_envd_has_no_details(trailer: bytes) -> None:
    assert envd_details.decode(trailer) is None


def test_the_reason_of_another_domain_is_not_taken_for_one_of_envd() -> None:
    other = status(code_pb2.UNAVAILABLE, "WORKER_DIED", domain="proxy.example")

    assert envd_details.decode(other.SerializeToString()) is None


@pytest.mark.parametrize(
    "imports",
    [
        ("from google.rpc import status_pb2, error_details_pb2", "import envd_client.details"),
        ("import envd_client.details", "from google.rpc import status_pb2, error_details_pb2"),
    ],
)
def test_the_real_classes_live_in_the_same_process(imports: tuple[str, str]) -> None:
    run_python(
        *imports,
        "import grpc_status.rpc_status",
        "status = status_pb2.Status()",
        "info = error_details_pb2.ErrorInfo(reason='A', domain='envd', metadata={'b': 'c'})",
        "status.details.add().Pack(info)",
        "decoded = envd_client.details.decode(status.SerializeToString())",
        "assert (decoded.reason, decoded.metadata) == ('A', {'b': 'c'}), decoded",
    )


def test_the_client_knows_every_failure_of_the_daemon() -> None:
    # The command line has one of its own.
    daemon = {cls.reason: cls for cls in envd.errors.EnvdError.__subclasses__()
              if cls.__module__ == "envd.errors"}  # fmt: skip
    client = envd_client_errors.BY_REASON

    assert {(reason, cls.__name__, cls.code) for reason, cls in daemon.items()} == {
        (reason, cls.__name__, cls.code.name)
        for reason, cls in client.items()
        if reason != "DAEMON_UNREACHABLE"
    }


def test_a_failure_survives_pickling() -> None:
    failure = envd_client_errors.WorkerDiedError("dead", metadata={"pid": "7"}, retry_after_s=2)

    copy = pickle.loads(pickle.dumps(failure))
    assert type(copy) is type(failure)
    assert vars(copy) == vars(failure)
    assert str(copy) == "dead"


class Failing(envd_pb2_grpc.PredictionsServicer):
    """Fails as the payload, a google.rpc.Status, says; without one it is slow."""

    def Predict(  # noqa: N802
        self, request: envd_pb2.PredictRequest, context: grpc.ServicerContext
    ) -> envd_pb2.PredictResponse:
        if request.payload:
            failure = status_pb2.Status.FromString(request.payload)
            context.abort_with_status(rpc_status.to_status(failure))
        time.sleep(0.5)
        return envd_pb2.PredictResponse()


@pytest.fixture
def socket(tmp_path: Path) -> Iterator[Path]:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    envd_pb2_grpc.add_PredictionsServicer_to_server(Failing(), server)
    server.add_insecure_port(f"unix:{tmp_path}/predict.sock")
    server.start()
    yield tmp_path / "predict.sock"
    server.stop(0).wait()


def ask_blocking(target: Path, payload: bytes, timeout_s: float = 10) -> object:
    with Client(target) as client:
        return client.predict("model", payload, timeout_s=timeout_s)


def ask_async(target: Path, payload: bytes, timeout_s: float = 10) -> object:
    async def ask() -> object:
        async with AsyncClient(target) as client:
            return await client.predict("model", payload, timeout_s=timeout_s)

    return asyncio.run(ask())


both_clients = pytest.mark.parametrize("ask", [ask_blocking, ask_async])


@both_clients
def test_a_failure_of_the_daemon_is_raised_as_its_class(
    ask: Callable[..., object], socket: Path
) -> None:
    failure = status(code_pb2.UNAVAILABLE, "WORKER_DIED", {"pid": "7"}, retry_after_s=0.5)

    with pytest.raises(envd_client_errors.WorkerDiedError, match="it failed") as raised:
        ask(socket, failure.SerializeToString())

    assert isinstance(raised.value, TryAgainError)
    assert raised.value.code is grpc.StatusCode.UNAVAILABLE
    assert raised.value.metadata == {"pid": "7"}
    assert raised.value.retry_after_s == 0.5


@both_clients
def test_a_reason_of_a_later_daemon_is_an_envd_error(
    ask: Callable[..., object], socket: Path
) -> None:
    failure = status(code_pb2.ABORTED, "NEW_REASON")

    with pytest.raises(EnvdError) as raised:
        ask(socket, failure.SerializeToString())

    assert type(raised.value) is EnvdError
    assert (raised.value.reason, raised.value.code) == ("NEW_REASON", grpc.StatusCode.ABORTED)


@both_clients
def test_a_daemon_that_is_not_there_is_unreachable(
    ask: Callable[..., object], tmp_path: Path
) -> None:
    with pytest.raises(envd_client_errors.DaemonUnreachableError, match="cannot be reached"):
        ask(tmp_path / "predict.sock", b"")


@both_clients
def test_a_daemon_that_is_too_slow_is_out_of_time(ask: Callable[..., object], socket: Path) -> None:
    with pytest.raises(envd_client_errors.DeadlineExceededError, match="in time"):
        ask(socket, b"", timeout_s=0.1)


class Recording(envd_pb2_grpc.EnvironmentsServicer):
    """Answers everything with nothing, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Message] = []
        for name in ("BuildEnvironment", "CancelBuild", "DeleteEnvironment", "PinEnvironment",
                     "UnpinEnvironment"):  # fmt: skip
            self._answer(name, envd_pb2.Environment())
        self._answer("ListEnvironments", envd_pb2.ListEnvironmentsResponse())
        self._answer("PurgeEnvironments", envd_pb2.PurgeEnvironmentsResponse(freed_bytes=7))
        self._answer("VerifyEnvironment", envd_pb2.VerifyEnvironmentResponse(repaired=True))

    def _answer(self, name: str, response: Message) -> None:
        def answer(request: Message, _: grpc.ServicerContext) -> Message:
            self.asked.append(request)
            return response

        setattr(self, name, answer)


@pytest.fixture
def recorders(tmp_path: Path) -> Iterator[dict[str, Recording]]:
    """What was asked on either socket of *tmp_path*."""
    found = {name: Recording() for name in ("predict", "admin")}
    servers = []
    for name, recorder in found.items():
        servers.append(grpc.server(futures.ThreadPoolExecutor(2)))
        envd_pb2_grpc.add_EnvironmentsServicer_to_server(recorder, servers[-1])
        servers[-1].add_insecure_port(f"unix:{tmp_path}/{name}.sock")
        servers[-1].start()
    yield found
    for server in servers:
        server.stop(0).wait()


PURGE: dict[str, Any] = {"unused_for_s": 1.5, "max_size_bytes": 0, "min_free": "10%", "keep": 0}


def test_what_changes_environments_is_asked_of_the_socket_that_may(
    tmp_path: Path, recorders: dict[str, Recording]
) -> None:
    with Client(tmp_path / "predict.sock") as client:
        client.build("/model", retry=True)
        client.cancel("abcd")
        list(client.list(show_all=True))
        client.delete("abcd", force=True)
        client.pin("abcd")
        client.unpin("abcd")
        freed = client.purge(force=True, max_age_s=float("inf"), **PURGE).freed_bytes
        client.purge()
        is_repaired = client.verify("abcd", repair=True).repaired

    assert (freed, is_repaired) == (7, True)
    check(recorders)


def test_an_event_loop_asks_for_the_same(tmp_path: Path, recorders: dict[str, Recording]) -> None:
    async def ask() -> tuple[int, bool]:
        async with AsyncClient(tmp_path / "predict.sock") as client:
            await client.build("/model", retry=True)
            await client.cancel("abcd")
            [one async for one in client.list(show_all=True)]
            await client.delete("abcd", force=True)
            await client.pin("abcd")
            await client.unpin("abcd")
            purged = await client.purge(force=True, max_age_s=float("inf"), **PURGE)
            await client.purge()
            verified = await client.verify("abcd", repair=True)
            return purged.freed_bytes, verified.repaired

    assert asyncio.run(ask()) == (7, True)
    check(recorders)


def check(recorders: dict[str, Recording]) -> None:
    assert recorders["predict"].asked == [
        envd_pb2.BuildEnvironmentRequest(model="/model", retry=True),
        envd_pb2.CancelBuildRequest(id="abcd"),
        envd_pb2.ListEnvironmentsRequest(show_all=True),
    ]
    assert recorders["admin"].asked == [
        envd_pb2.DeleteEnvironmentRequest(id="abcd", force=True),
        envd_pb2.PinEnvironmentRequest(id="abcd"),
        envd_pb2.UnpinEnvironmentRequest(id="abcd"),
        envd_pb2.PurgeEnvironmentsRequest(
            force=True,
            max_age=duration_pb2.Duration(seconds=315_576_000_000),
            unused_for=duration_pb2.Duration(seconds=1, nanos=500_000_000),
            max_size=0,
            min_free="10%",
            keep=0,
        ),
        envd_pb2.PurgeEnvironmentsRequest(),
        envd_pb2.VerifyEnvironmentRequest(id="abcd", repair=True),
    ]


def test_a_call_is_tried_again_after_the_time_the_daemon_asks_for() -> None:
    attempts = Attempts(timeout_s=10, retries=2, clock=lambda: 0)

    assert attempts.pause_s(rpc_error("WORKER_DIED", retry_after_s=0.5)) == 0.5
    assert attempts.pause_s(rpc_error("SHUTTING_DOWN")) == 1
    with pytest.raises(envd_client_errors.WorkerDiedError):
        attempts.pause_s(rpc_error("WORKER_DIED", retry_after_s=0.5))


def test_a_call_is_not_tried_again_past_its_deadline() -> None:
    attempts = Attempts(timeout_s=10, retries=2, clock=lambda: 0)

    with pytest.raises(envd_client_errors.IndexUnreachableError):
        attempts.pause_s(rpc_error("INDEX_UNREACHABLE", retry_after_s=30))


@pytest.mark.parametrize("timeout_s", [math.inf, 1e12])
def test_a_call_may_take_as_long_as_it_likes(timeout_s: float) -> None:
    assert Attempts(timeout_s=timeout_s, retries=0).left_s() is None


def test_what_is_not_utf_8_is_refused_before_it_is_sent() -> None:
    path = Path(os.fsdecode(b"/models/\xff"))

    with pytest.raises(envd_client_errors.RequestInvalidError, match=r"'/models/\\udcff' is not"):
        requests.get_model(path)
    with pytest.raises(envd_client_errors.PayloadInvalidError, match="UTF-8"):
        encode("\ud800")


def test_only_what_is_unavailable_is_tried_again() -> None:
    attempts = Attempts(timeout_s=None, retries=2)

    with pytest.raises(envd_client_errors.EnvironmentInUseError):
        attempts.pause_s(rpc_error("ENVIRONMENT_IN_USE", code=grpc.StatusCode.FAILED_PRECONDITION))


def status(
    code: code_pb2.Code.ValueType,
    reason: str,
    metadata: dict[str, str] | None = None,
    *,
    domain: str = "envd",
    retry_after_s: float | None = None,
) -> status_pb2.Status:
    info = error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata=metadata)
    messages: list[Message] = [info]
    if retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(retry_after_s * 1e9))
        messages.append(error_details_pb2.RetryInfo(retry_delay=delay))
    failure = status_pb2.Status(code=code, message="it failed")
    for message in messages:
        failure.details.add().Pack(message)
    return failure


def rpc_error(
    reason: str,
    *,
    code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE,
    retry_after_s: float | None = None,
) -> grpc.RpcError:
    trailer = status(code_pb2.UNAVAILABLE, reason, retry_after_s=retry_after_s).SerializeToString()
    return grpc.aio.AioRpcError(
        code, grpc.aio.Metadata(), grpc.aio.Metadata((envd_details.TRAILER, trailer))
    )


def run_python(*lines: str) -> None:
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, timeout=60)
