"""HTTP as MLflow's clients know it: paths, content types, statuses, errors, ids, ends."""

from __future__ import annotations

import inspect
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import envd
from envd import config, errors
from envd.errors import EnvdError, ModelRaisedError, PayloadInvalidError, SettingsInvalidError
from envd.serve.http import failures
from envd.serve.http.failures import BodyTooLargeError, MediaTypeError, TooSlowError
from tests.conftest import environment, wait_for
from tests.tiny import Tiny
from tests.web import JSON, Web, answer, answers, post, served

# What it is asked to do stands in the input.
BODY = """\
        import os, time
        class LikeMlflows(Exception):
            def __init__(self, code):
                super().__init__(code)
                self.error_code, self.json_kwargs = code, {}
                self.sqlstate, self.error_class = 'KAM09', 'SOME_CLASS'
            def serialize_as_json(self):
                return ''
        do, what = data if isinstance(data, list) and len(data) == 2 else (None, None)
        if do == 'raise':
            raise ValueError(what)
        if do == 'raise_like_mlflow':
            raise LikeMlflows(what)
        if do == 'import':
            __import__(what)
        if do == 'nan':
            return [float('nan'), 1.5]
        if do == 'die':
            os._exit(3)
        if do == 'wait':
            open(what + '.begun', 'w').close()
            while not os.path.exists(what):
                time.sleep(0.01)
        return data
"""


@pytest.fixture(scope="module")
def web(tiny: Tiny, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    folder = tmp_path_factory.mktemp("http")
    bad = tiny.model(folder / "bad", "no-such-package")
    models = {"echo": tiny.model(folder / "echo", body=BODY), "bad": bad}
    with served(folder, home, models, **tiny.settings, ENVD_HTTP__MODEL="echo") as found:
        yield found


# --- what is asked, and what comes back: the table of MLflow's own server

ECHO = '{"predictions": "x"}'
INVOKED = [
    (JSON, b'{"inputs": "x"}', ECHO),
    (JSON, b'{"instances": "x"}', ECHO),
    (JSON, b'{"inputs": "x", "other": 1}', ECHO),
    (JSON, b'{"inputs": "x", "params": {"a": 1}}', ECHO),
    (JSON, b'\xef\xbb\xbf{"inputs": "x"}', ECHO),
    ({}, b'{"inputs": "x"}', ECHO),
    ({"content-type": "application/json; charset=UTF-8"}, b'{"inputs": "x"}', ECHO),
    ({"content-type": 'Application/JSON;charset="utf-8"'}, b'{"inputs": "x"}', ECHO),
    (JSON, b'{"inputs": ["nan", 0]}', '{"predictions": [null, 1.5]}'),
    (JSON, b'{"messages": ["x"]}', '{"messages": ["x"]}'),
    (JSON, b'{"prompt": "x", "inputs": 1}', '{"prompt": "x", "inputs": 1}'),
    (JSON, b'{"input": "x", "params": {"a": 1}}', '{"input": "x", "params": {"a": 1}}'),
]


@pytest.mark.parametrize(("headers", "body", "expected"), INVOKED)
def test_an_invocation_is_answered_as_mlflow_does(web: Web, headers, body, expected) -> None:
    found = web("POST", "/invocations", body, headers)

    assert (found.status, found.headers["content-type"]) == (200, "application/json")
    assert found.body.decode() == expected


OWN = ("KAM09", "SOME_CLASS")
BAD, INVALID = ("KAM00", "INVALID_PARAMETER_VALUE"), ("XXM00", "CLIENT_INTERNAL_ERROR")
REFUSED = [
    # the body, the status, the code, its class
    (b"", 400, "BAD_REQUEST", BAD),
    (b"{", 400, "BAD_REQUEST", BAD),
    (b"\xff", 400, "BAD_REQUEST", BAD),
    (b"[" * 100_000, 400, "BAD_REQUEST", BAD),
    (b"[1]", 400, "BAD_REQUEST", BAD),
    (b"1", 400, "BAD_REQUEST", BAD),
    (b"null", 400, "BAD_REQUEST", BAD),
    (b"{}", 400, "BAD_REQUEST", BAD),
    (b'{"data": [[1]], "columns": ["a"]}', 400, "BAD_REQUEST", BAD),
    (b'{"inputs": 1, "instances": 1}', 400, "BAD_REQUEST", BAD),
    (b'{"inputs": 1, "params": 1}', 400, "INVALID_PARAMETER_VALUE", BAD),
    (b'{"dataframe_records": [{"a": 1}]}', 400, "BAD_REQUEST", BAD),
    (b'{"inputs": ["raise", "no"]}', 400, "BAD_REQUEST", BAD),
    (b'{"inputs": ["import", "no_such_module"]}', 400, "BAD_REQUEST", BAD),
    *(
        (b'{"inputs": ["raise_like_mlflow", "%s"]}' % code.encode(), status, code, OWN)
        for code, status in failures.STATUS.items()
    ),
    (b'{"inputs": ["raise_like_mlflow", "ITS_OWN"]}', 500, "ITS_OWN", OWN),
    (b'{"inputs": ["die", 0]}', 503, "TEMPORARILY_UNAVAILABLE", INVALID),
]  # fmt: skip


@pytest.mark.parametrize(("body", "status", "code", "kind"), REFUSED)
def test_a_refusal_has_mlflows_status_and_form(web: Web, body, status, code, kind) -> None:
    found = web("POST", "/models/echo/invocations", body)

    assert (found.status, found.document["error_code"]) == (status, code)
    assert found.headers["content-type"] == "application/json"
    assert (found.document["sqlstate"], found.document["error_class"]) == kind
    assert found.document["message"]
    assert ("stack_trace" in found.document) == (b'["raise"' in body or b"import" in body)
    assert ("retry-after" in found.headers) == (
        code == "TEMPORARILY_UNAVAILABLE" and b"die" in body
    )


@pytest.mark.parametrize(
    ("content_type", "said"),
    [
        ("application/json; charset=latin-1", "only supports UTF-8"),
        ("application/json; format=pandas-split", "Unrecognized content type parameters: format"),
        ("text/plain", "only supports the following content types"),
        ("", "only supports the following content types"),
    ],
)
def test_another_content_type_is_refused_in_words(web: Web, content_type: str, said: str) -> None:
    found = web("POST", "/invocations", b'{"inputs": 1}', {"content-type": content_type})

    assert found.status == 415
    assert found.headers["content-type"].startswith("text/plain")
    assert said in found.body.decode()


def test_csv_and_parquet_need_pandas_in_the_models_environment(web: Web) -> None:
    kinds = ("text/csv", "application/vnd.apache.parquet")

    found = [web("POST", "/invocations", b"a\n1", {"content-type": kind}) for kind in kinds]

    assert [(one.status, one.document["error_code"]) for one in found] == [(400, "BAD_REQUEST")] * 2
    assert all("pandas" in one.document["message"] for one in found)


@pytest.mark.parametrize("prefix", ["", "/models/echo"])
def test_health_and_version_are_told(web: Web, prefix: str) -> None:
    web("POST", "/invocations", {"inputs": 1})

    ping, health, version = (web("GET", f"{prefix}/{one}") for one in ("ping", "health", "version"))

    assert [(one.status, one.body) for one in (ping, health)] == [(200, b"\n")] * 2
    # The model was logged by no mlflow.
    assert (version.status, version.body.decode()) == (200, envd.__version__)


def test_a_model_that_is_not_loaded_is_not_healthy(web: Web) -> None:
    before = web("GET", "/models/bad/ping")
    asked = web("POST", "/models/bad/invocations", {"inputs": 1})
    after = web("GET", "/models/bad/health")

    assert (before.status, before.document["error_code"]) == (503, "TEMPORARILY_UNAVAILABLE")
    assert before.headers["x-envd-reason"] == "NOT_LOADED"
    assert (asked.status, asked.document["error_code"]) == (500, "INVALID_STATE")
    assert asked.headers["x-envd-reason"] == "SOLVE_FAILED"
    assert after.status == 503
    assert "could not be loaded" in after.document["message"]


@pytest.mark.parametrize(
    ("method", "path", "status", "document"),
    [
        ("GET", "/invocations", 405, {"detail": "Method Not Allowed"}),
        ("PUT", "/models/echo/invocations", 405, {"detail": "Method Not Allowed"}),
        ("POST", "/ping", 405, {"detail": "Method Not Allowed"}),
        ("GET", "/nowhere", 404, {"detail": "Not Found"}),
        # Nowhere else is shown the way to, of a host that the client names.
        ("POST", "/invocations/", 404, {"detail": "Not Found"}),
        ("POST", "/models/a/b/invocations", 404, {"detail": "Not Found"}),
    ],
)
def test_what_there_is_no_route_for(web: Web, method: str, path: str, status, document) -> None:
    found = web(method, path, b"")

    assert (found.status, found.document) == (status, document)
    assert ("allow" in found.headers) == (status == 405)


@pytest.mark.parametrize(
    "name", ["nobody", "..", "%2e%2e", "file:%2f%2f", "a%00b", "%ff", "models:"]
)
def test_only_models_with_a_name_are_served(web: Web, name: str) -> None:
    found = web("POST", f"/models/{name}/invocations", {"inputs": 1})
    path = web("POST", f"/models/{web.daemon.root}/invocations", {"inputs": 1})
    quoted = str(web.daemon.root.parent / "echo").replace("/", "%2F")

    assert found.status == 404
    assert found.document.get("error_code", "RESOURCE_DOES_NOT_EXIST") == "RESOURCE_DOES_NOT_EXIST"
    assert path.status == web("POST", f"/models/{quoted}/invocations", {"inputs": 1}).status == 404


# --- errors

CLASSES = [
    cls for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, EnvdError) and cls is not EnvdError
]  # fmt: skip
BY_CODE = {
    "ABORTED": (409, "ABORTED"),
    "DEADLINE_EXCEEDED": (504, "DEADLINE_EXCEEDED"),
    "FAILED_PRECONDITION": (500, "INVALID_STATE"),
    "INTERNAL": (500, "INTERNAL_ERROR"),
    "INVALID_ARGUMENT": (400, "BAD_REQUEST"),
    "NOT_FOUND": (404, "RESOURCE_DOES_NOT_EXIST"),
    "PERMISSION_DENIED": (403, "PERMISSION_DENIED"),
    "UNAUTHENTICATED": (401, "UNAUTHENTICATED"),
    "UNAVAILABLE": (503, "TEMPORARILY_UNAVAILABLE"),
    "UNKNOWN": (400, "BAD_REQUEST"),
}
BY_REASON = {
    "CACHE_FULL": (503, "TEMPORARILY_UNAVAILABLE"),
    "IN_FLIGHT_FULL": (429, "REQUEST_LIMIT_EXCEEDED"),
    "LIMIT_REACHED": (503, "TEMPORARILY_UNAVAILABLE"),
    # An answer that is; what comes in has a class of its own.
    "PAYLOAD_TOO_LARGE": (500, "INVALID_STATE"),
    "QUEUE_FULL": (429, "REQUEST_LIMIT_EXCEEDED"),
}


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_has_a_status_and_a_code(cls: type[EnvdError]) -> None:
    error = cls("it failed; mend it")

    found = failures.of(error)

    document = json.loads(found.content)
    expected = BY_REASON.get(cls.reason) or BY_CODE[cls.code]
    assert (found.status, document["error_code"]) == expected
    assert document["message"] == "it failed; mend it"
    assert found.headers["x-envd-reason"] == cls.reason
    retry = found.headers.get("retry-after")
    assert (retry is None) == (error.retry_after_s is None)
    assert retry is None or (float(retry) >= error.retry_after_s and found.status in {429, 503})


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (BodyTooLargeError("m"), 413, "BAD_REQUEST"),
        (TooSlowError("m"), 408, "DEADLINE_EXCEEDED"),
        (MediaTypeError("m"), 415, None),
        (errors.ImportFailedError("m", traceback="t"), 400, "BAD_REQUEST"),
        (errors.ImportFailedError("m", traceback="t", stage="load"), 500, "INVALID_STATE"),
        (ModelRaisedError("m", error_code="NOT_FOUND"), 404, "NOT_FOUND"),
        (PayloadInvalidError("m", error_code="FROM_THE_FUTURE"), 500, "FROM_THE_FUTURE"),
    ],
)
def test_what_http_makes_of_some_errors(error: EnvdError, status: int, code: str | None) -> None:
    found = failures.of(error)

    assert found.status == status
    assert code is None or json.loads(found.content)["error_code"] == code


@pytest.mark.slow
def test_the_tables_are_mlflows_own() -> None:
    from mlflow.exceptions import ERROR_CODE_TO_HTTP_STATUS, MlflowException
    from mlflow.protos.databricks_pb2 import ErrorCode

    assert failures.STATUS == ERROR_CODE_TO_HTTP_STATUS
    for code, status in failures.STATUS.items():
        theirs = json.loads(MlflowException("m", ErrorCode.Value(code)).serialize_as_json())
        ours = json.loads(failures.of(ModelRaisedError("m", error_code=code)).content)
        assert ours == theirs, status


# --- what all requests have


def test_a_request_keeps_the_id_it_came_with(web: Web) -> None:
    given = {**JSON, "x-request-id": "mine/1"}

    asked = [
        web("POST", "/invocations", {"inputs": 1}, given),
        web("POST", "/invocations", b"{", given),
        web("GET", "/ping", headers=given),
        web("GET", "/models/nobody/ping", headers=given),
    ]
    made = [
        web("POST", "/invocations", {"inputs": 1}, {"x-request-id": bad}) for bad in ("", "a b")
    ]

    assert {one.headers["x-request-id"] for one in asked} == {"mine/1"}
    assert len({one.headers["x-request-id"] for one in made} - {"", "a b"}) == 2


def test_a_page_of_another_site_may_not_ask(web: Web) -> None:
    found = [
        web("POST", "/invocations", {"inputs": 1}, {"sec-fetch-site": site})
        for site in ("cross-site", "same-origin", "none")
    ]

    assert [one.status for one in found] == [403, 200, 200]
    assert found[0].document["error_code"] == "PERMISSION_DENIED"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "localhost"}, 200),
        ({"host": "LocalHost:5000"}, 200),
        ({"host": "127.0.0.1:1"}, 200),
        ({"host": "[::1]:5000"}, 200),
        # What a page has had its own name lead here for.
        ({"host": "evil.example", "origin": "http://evil.example"}, 403),
        ({"host": "evil.example:5000", "sec-fetch-site": "same-origin"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"host": "evil@localhost"}, 403),
        ({"host": "localhost:5000", "origin": "http://localhost:5000"}, 200),
        ({"host": "localhost:5000", "origin": "http://localhost:3000"}, 403),
        ({"host": "localhost:5000", "origin": "null"}, 403),
        ({"host": "localhost:5000", "origin": ""}, 403),
        ({"host": "localhost", "origin": "http://proxied", "sec-fetch-site": "same-origin"}, 200),
    ],
)
def test_no_page_comes_by_a_name_that_it_leads_here(web: Web, headers, status: int) -> None:
    asked = web("POST", "/invocations", {"inputs": 1}, headers)
    looked = web("GET", "/openapi.json", None, {"host": headers["host"]})

    assert asked.status == status
    assert looked.status == (403 if "evil" in headers["host"] else 200)
    assert web("GET", "/ping", None, headers).status == 200


def test_a_request_without_a_host_is_no_browsers(web: Web) -> None:
    assert web.raw(b"GET /version HTTP/1.0\r\n\r\n").status == 200


def test_the_metrics_are_there_and_count(web: Web) -> None:
    web("POST", "/invocations", {"inputs": 1})

    found = web("GET", "/metrics")

    assert found.headers["content-type"].startswith("text/plain; version=")
    text = found.body.decode()
    assert re.search(
        r'^envd_requests_total\{method="invocations",outcome="OK"\} [1-9]', text, re.MULTILINE
    )
    assert 'model="echo"' in text


UPGRADE = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
CHUNKED = (
    post("/invocations", b"", "Transfer-Encoding: chunked") + b'd\r\n{"inputs": 3}\r\n0\r\n\r\n'
)
TOGETHER = [
    post("/invocations", b'{"inputs": 1}'),
    # As Java's client asks for HTTP/2: it is not taken, and the request is answered.
    post("/invocations", b'{"inputs": 2}', *UPGRADE),
    CHUNKED,
    CHUNKED.replace(b"chunked", b"chunked\r\n" + "\r\n".join(UPGRADE).encode()),
    b"GET /ping HTTP/1.1\r\nHost: localhost\r\n" + "\r\n".join(UPGRADE).encode() + b"\r\n\r\n",
    post("/invocations", b'{"inputs": 4}'),
]


@pytest.mark.parametrize("size", [1, 7, 100, 10_000])
def test_requests_of_a_connection_are_answered_in_order_however_their_bytes_come(
    web: Web, size: int
) -> None:
    sent = b"".join(TOGETHER)
    with web.socket() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for begin in range(0, len(sent), size):
            connection.sendall(sent[begin : begin + size])
        found = [one.body for one in answers(connection, len(TOGETHER))]

    predictions = [b'{"predictions": %d}' % one for one in (1, 2, 3, 3)]
    assert found == [*predictions, b"\n", b'{"predictions": 4}']


def test_many_requests_may_come_at_once(web: Web) -> None:
    upgrades = b"".join([TOGETHER[4]] * 2000)
    with web.socket() as connection, ThreadPoolExecutor(1) as threads:
        threads.submit(connection.sendall, upgrades)
        found = answers(connection, 2000)

    assert {one.status for one in found} == {200}


@pytest.mark.parametrize("count", [1, 2])
def test_a_client_that_leaves_cancels_its_requests(web: Web, tmp_path: Path, count: int) -> None:
    gate, later = tmp_path / "gate", tmp_path / "later"
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(web, "POST", "/invocations", {"inputs": ["wait", str(gate)]})
        wait_for(Path(f"{gate}.begun").exists)
        with web.socket() as connection:
            asked = json.dumps({"inputs": ["wait", str(later)]}).encode()
            connection.sendall(post("/invocations", asked) * count)
            wait_for(lambda: b"envd_requests_in_flight 2.0" in web("GET", "/metrics").body)
        wait_for(lambda: b"envd_requests_in_flight 1.0" in web("GET", "/metrics").body)
        gate.touch()

        assert first.result().status == 200
    assert web("POST", "/invocations", {"inputs": 1}).status == 200
    assert not Path(f"{later}.begun").exists()
    assert b'outcome="CANCELLED"' in web("GET", "/metrics").body


# --- where it is served


@pytest.mark.parametrize("listen", ["5000", "127.0.0.1:99999", "host", "a b:1", "[::1:5000"])
def test_what_is_no_address_is_refused(listen: str) -> None:
    with pytest.raises(SettingsInvalidError, match="an address and a port"):
        config.load(environ={"ENVD_HTTP__LISTEN": listen})


def test_an_address_in_use_is_told(web: Web, home: Path, tmp_path: Path, tiny: Tiny) -> None:
    address = ":".join(map(str, web.address))

    done = subprocess.run(
        [f"{Path(sys.executable).parent}/envd", "--http", address],
        env=environment(tmp_path / "root", home, **tiny.settings),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.returncode == 2
    assert f"`{address}`" in done.stderr
    assert "http.listen" in done.stderr


def test_a_daemon_that_stops_ends_its_requests_and_takes_no_others(
    tiny: Tiny, home: Path, tmp_path: Path
) -> None:
    model, gate, path = (
        tiny.model(tmp_path / "echo", body=BODY),
        tmp_path / "gate",
        tmp_path / "http",
    )
    # What a daemon that was killed left.
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    timeouts = ("TIMEOUT", "READ_TIMEOUT", "IDLE_TIMEOUT")
    more = tiny.settings | {"ENVD_HTTP__LISTEN": str(path)}
    more |= {f"ENVD_HTTP__{one}": "never" for one in timeouts}

    def connect() -> socket.socket:
        found = socket.socket(socket.AF_UNIX)
        found.settimeout(60)
        found.connect(str(path))
        return found

    with (
        served(tmp_path, home, {"echo": model}, **more) as web,
        connect() as idle,
        connect() as busy,
    ):
        idle.sendall(b"GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n")
        before = answer(idle)
        asked = json.dumps({"inputs": ["wait", str(gate)]}).encode()
        busy.sendall(post("/invocations", asked))
        wait_for(Path(f"{gate}.begun").exists)
        web.daemon.process.send_signal(signal.SIGTERM)
        ended = idle.recv(1)
        found = []
        for one in (b"GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n", post("/invocations", b"{}")):
            with connect() as late:
                late.sendall(one)
                found.append(answer(late))
        threading.Timer(0.1, gate.touch).start()
        last, end = answer(busy), busy.recv(1)
        status = web.daemon.process.wait(20)

    assert (web.url, before.status, ended) == (f"unix:{path}", 200, b"")
    assert [(one.status, one.headers["connection"]) for one in found] == [(503, "close")] * 2
    assert {one.headers["x-envd-reason"] for one in found} == {"SHUTTING_DOWN"}
    assert (last.status, end, status) == (200, b"", 0)
    assert not path.exists()
