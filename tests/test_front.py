"""The front of the daemon: what it costs, what it holds, what it bears, and what it tells."""

from __future__ import annotations

import contextlib
import http.client
import re
import resource
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from envd_client.errors import EnvdError, InFlightFullError
from envd_client.v1 import envd_pb2 as api
from envd_client.v1 import envd_pb2_grpc as services
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as otlp_services
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from prometheus_client import parser

from envd.errors import DeadlineExceededError
from envd.serve.calls import Call
from envd.store import Store
from tests.conftest import Daemon, environment, stop, wait_for
from tests.taken import heaps, spawner_of
from tests.tiny import Tiny

MIB = 1 << 20
ID = "x-request-id"
WAITS = """\
        import os, time
        if isinstance(data, list):
            open(data[0] + '.begun', 'w').close()
            while not os.path.exists(data[0]):
                time.sleep(0.01)
        return 'done'
"""


class Collector(otlp_services.TraceServiceServicer):
    """An OpenTelemetry collector that keeps what it is sent."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    def Export(self, request, _):  # noqa: N802
        for resource_spans in request.resource_spans:
            for scope in resource_spans.scope_spans:
                self.spans += scope.spans
        return otlp.ExportTraceServiceResponse()

    def of(self, request_id: str) -> dict[str, Span]:
        """Return the spans of one request by name, once all are there."""
        found: dict[str, Span] = {}

        def are_there() -> bool:
            whole = [
                one for one in self.spans if attributes(one).get("envd.request_id") == request_id
            ]
            if whole:
                same = [one for one in self.spans if one.trace_id == whole[0].trace_id]
                found.update({one.name: one for one in same})
            return bool(whole)

        wait_for(are_there)
        return found


@dataclass(frozen=True)
class Front:
    """A daemon that logs every request, and is watched."""

    daemon: Daemon
    log: Path
    metrics_url: str
    collector: Collector

    @property
    def socket(self) -> str:
        return f"unix:{self.daemon.root}/predict.sock"

    def lines(self, request_id: str) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if f"[{request_id}]" in line]

    def metrics(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        with urllib.request.urlopen(self.metrics_url, timeout=10) as answer:
            text = answer.read().decode()
        return {
            (one.name, frozenset(one.labels.items())): one.value
            for family in parser.text_string_to_metric_families(text)
            for one in family.samples
        }


@pytest.fixture(scope="module")
def front(tiny: Tiny, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    folder = tmp_path_factory.mktemp("front")
    server, collector = grpc.server(ThreadPoolExecutor(1)), Collector()
    otlp_services.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    more = tiny.settings | {
        "ENVD_DAEMON__METRICS": "127.0.0.1:0",
        "ENVD_DAEMON__MAX_MESSAGE": "1MiB",
        "ENVD_DAEMON__MAX_IN_FLIGHT": "1MB",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
    }
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [f"{Path(sys.executable).parent}/envd", "-v"],
            env=environment(folder / "root", home, **more),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        said = [process.stdout.readline() for _ in range(4)]
        yield Front(
            Daemon(folder / "root", process), folder / "log", said[-1].split()[-1], collector
        )
        stop(Daemon(folder / "root", process))
    server.stop(0).wait()


@pytest.fixture(scope="module")
def model(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.model(tmp_path_factory.mktemp("model") / "model", body=WAITS)


def test_the_daemon_is_small_and_imports_no_model_library(
    home: Path, tiny: Tiny, tmp_path: Path
) -> None:
    with (tmp_path / "imports").open("w") as imports:
        process = subprocess.Popen(
            [sys.executable, "-X", "importtime", f"{Path(sys.executable).parent}/envd"],
            env=environment(
                tmp_path / "root", home, **tiny.settings, ENVD_DAEMON__METRICS="[::1]:0"
            ),
            stdout=subprocess.PIPE,
            stderr=imports,
            text=True,
        )
    daemon = Daemon(tmp_path / "root", process)
    try:
        said = [process.stdout.readline() for _ in range(4)]
        size = Path(f"/proc/{process.pid}/status").read_text()
        with daemon.client() as client:
            client.predict(tiny.model(tmp_path / "model"), {"inputs": []})
        of_threads = heaps(process.pid)
        tunables = [b"GLIBC_TUNABLES" in Path(f"/proc/{pid}/environ").read_bytes()
                    for pid in (process.pid, spawner_of(process.pid))]  # fmt: skip
    finally:
        stop(daemon)
    imported = set(re.findall(r"\| +([\w.]+)$", (tmp_path / "imports").read_text(), re.MULTILINE))

    assert said[0].startswith("envd ")
    assert int(re.search(r"VmRSS:\s+(\d+) kB", size)[1]) <= 80 * 1024
    assert (of_threads, tunables) == (0, [True, False])
    assert {"envd.serve.daemon", "envd.serve.metrics", "grpc"} <= imported
    assert not {"numpy", "pandas", "mlflow", "sklearn", "opentelemetry"} & imported
    # Nobody has asked for HTTP.
    assert not {"starlette", "uvicorn", "httptools", "envd.serve.http"} & imported


@pytest.mark.parametrize(
    ("host", "status"), [("localhost:1", 200), ("127.0.0.1", 200), ("evil.example:1", 403)]
)
def test_metrics_are_not_for_the_page_of_a_site_that_was_led_here(
    front: Front, host: str, status: int
) -> None:
    address = front.metrics_url.removeprefix("http://").partition("/")[0]
    with contextlib.closing(http.client.HTTPConnection(address, timeout=60)) as connection:
        connection.request("GET", "/metrics", headers={"host": host})
        assert connection.getresponse().status == status


def test_health_answers_within_a_second_whoever_else_connects(front: Front) -> None:
    silent, garbage, streams = 1000, 300, 40
    path = str(front.daemon.root / "predict.sock")
    with contextlib.ExitStack() as stack:
        _allow_descriptors(stack, 2 * (silent + garbage))
        quiet = [stack.enter_context(_connected(path)) for _ in range(silent)]
        for _ in range(garbage):
            with contextlib.suppress(OSError):
                stack.enter_context(_connected(path)).send(secrets.token_bytes(500))
        channel = stack.enter_context(grpc.insecure_channel(front.socket))
        health = health_pb2_grpc.HealthStub(channel)
        endless = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(streams)]
        first = [next(one).status for one in endless]
        taken = [_health_seconds(front) for _ in range(20)]
        # Who says nothing is not kept for ever.
        for one in quiet:
            one.settimeout(10)
            with contextlib.suppress(ConnectionError):
                while one.recv(4096):
                    pass

    assert first == [health_pb2.HealthCheckResponse.SERVING] * streams
    assert max(taken) < 1


def _allow_descriptors(stack: contextlib.ExitStack, count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, count + 500)), hard))
    stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))


def _connected(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    return connection


def _health_seconds(front: Front) -> float:
    """Return how long a health check over a connection of its own takes."""
    started = time.monotonic()
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(front.socket, options) as channel:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    return time.monotonic() - started


@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_a_request_may_be_as_large_as_the_limit(front: Front, model: Path, beyond: int) -> None:
    request = api.PredictRequest(model=str(model), content_type="application/json")
    request.payload = b'{"inputs": "%s"}' % (b"x" * (MIB - 200))
    request.payload = request.payload[:-2] + b"x" * (MIB + beyond - request.ByteSize()) + b'"}'
    assert request.ByteSize() == MIB + beyond

    with grpc.insecure_channel(front.socket) as channel:
        predict = services.PredictionsStub(channel).Predict
        if beyond <= 0:
            assert predict(request).payload == b'{"predictions": "done"}'
        else:
            with pytest.raises(grpc.RpcError) as raised:
                predict(request)
            assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_an_answer_too_large_to_be_sent_is_told(front: Front, tiny: Tiny, tmp_path: Path) -> None:
    model = tiny.model(tmp_path / "model", body="        return 'x' * data")
    frame = len('{"predictions": ""}')
    with front.daemon.client() as client:
        client.predict(model, {"inputs": 1})
        size = len(client.predict(model, {"inputs": MIB - frame - 500}).payload)
        errors = []
        # With what is said of it, even the first is too large.
        for count in (MIB - frame - 10, MIB - frame, MIB - frame + 1):
            with pytest.raises(EnvdError) as raised:
                client.predict(model, {"inputs": count})
            errors.append(raised.value)

    assert size == MIB - 500
    assert {(one.code.name, one.reason) for one in errors} == {
        ("RESOURCE_EXHAUSTED", "PAYLOAD_TOO_LARGE")
    }


def test_requests_together_hold_no_more_than_the_limit(
    front: Front, model: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    half = {"inputs": [str(gate), "x" * 600_000]}
    with front.daemon.client() as client, ThreadPoolExecutor(1) as threads:
        first = threads.submit(client.predict, model, half)
        wait_for(Path(f"{gate}.begun").exists)
        held = front.metrics()["envd_in_flight_bytes", frozenset()]
        with pytest.raises(InFlightFullError) as raised:
            client.predict(model, {"inputs": "x" * 500_000})
        small = threads.submit(client.predict, model, {"inputs": "x" * 100})
        gate.touch()
        answers = [
            first.result(),
            small.result(),
            client.predict(model, {"inputs": "x" * 1_020_000}),
        ]

    assert held > 600_000
    assert (raised.value.code.name, raised.value.retry_after_s) == ("RESOURCE_EXHAUSTED", 0.5)
    assert [one.predictions for one in answers] == ["done"] * 3
    assert front.metrics()["envd_in_flight_bytes", frozenset()] == 0


def test_a_request_keeps_the_id_it_came_with(front: Front, model: Path, tmp_path: Path) -> None:
    with grpc.insecure_channel(front.socket) as channel:
        stub = services.PredictionsStub(channel)

        def ask(path: Path, *metadata: tuple[str, str]) -> str:
            request = api.PredictRequest(model=str(path), payload=b'{"inputs": 1}')
            try:
                _, call = stub.Predict.with_call(request, metadata=metadata)
            except grpc.RpcError as error:
                call = error
            return dict(call.trailing_metadata())[ID]

        given = ask(model, (ID, "mine/1"))
        failed = ask(tmp_path / "nowhere", (ID, "mine/2"))
        made = [ask(model), ask(model), ask(model, (ID, "not one")), ask(model, (ID, "x" * 129))]
    with front.daemon.client() as client, pytest.raises(EnvdError) as raised:
        client.predict(tmp_path / "nowhere", {"inputs": 1})

    assert (given, failed) == ("mine/1", "mine/2")
    assert len(set(made)) == 4
    assert not {"not one", "x" * 129, ""} & set(made)
    assert front.lines(raised.value.metadata["request_id"])
    assert re.search(
        r"Predict OK in [\d.]+ ms, environment [\d.]+, queue [\d.]+, .*worker [\d.]+, model",
        "\n".join(front.lines("mine/1")),
    )
    assert "MODEL_NOT_FOUND" in front.lines("mine/2")[0]


def test_a_request_whose_deadline_passes_before_it_is_read_is_not_begun(
    front: Front, model: Path, tmp_path: Path
) -> None:
    with front.daemon.client() as client:
        client.predict(model, {"inputs": 1})
        front.daemon.process.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(EnvdError) as raised:
                client.predict(model, {"inputs": [str(tmp_path / "late")]}, timeout_s=0.3)
        finally:
            front.daemon.process.send_signal(signal.SIGCONT)
        client.predict(model, {"inputs": 1})

    assert raised.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert not (tmp_path / "late.begun").exists()


@pytest.mark.parametrize(("left_s", "is_late"), [(None, False), (0.1, False), (0.0, True)])
def test_a_request_whose_deadline_has_passed_goes_no_further(left_s, is_late) -> None:
    late = pytest.raises(DeadlineExceededError) if is_late else contextlib.nullcontext()

    with late:
        Call("1", "/a/Method", (), lambda: left_s).check_deadline()


def test_what_comes_in_parts_counts_among_what_is_in_flight(
    front: Front, tiny: Tiny, tmp_path: Path
) -> None:
    model = tiny.model(tmp_path / "model", body="        return len(data)")
    may_end = threading.Event()

    def messages() -> Iterator[api.PredictStreamRequest]:
        asked = api.PredictRequest(model=str(model), payload=b'{"inputs": [')
        yield api.PredictStreamRequest(request=asked, function="PREDICT")
        yield api.PredictStreamRequest(payload=b" " * 700_000)
        may_end.wait(60)
        yield api.PredictStreamRequest(payload=b"1]}", input_ends=True)

    def held() -> float:
        return front.metrics()["envd_in_flight_bytes", frozenset()]

    with front.daemon.client() as client, grpc.insecure_channel(front.socket) as channel:
        # Alone one may have more than that.
        assert client.predict(model, {"inputs": "x" * 3_000_000}, in_parts=True).predictions
        parts = services.PredictionsStub(channel).PredictStream(messages())
        wait_for(lambda: held() > 700_000)
        for in_parts in (True, False):
            with pytest.raises(InFlightFullError):
                client.predict(model, {"inputs": "x" * 400_000}, in_parts=in_parts)
        may_end.set()
        assert next(parts).payload == b'{"predictions": 1}'
        assert next(parts).HasField("end")
        assert client.predict(model, {"inputs": "x" * 400_000}).predictions == 400_000
    assert held() == 0


def test_a_stream_is_counted_logged_and_traced_as_other_predictions_are(
    front: Front, tiny: Tiny, tmp_path: Path
) -> None:
    # The one that begins with 0 has no end.
    body = """
        return 1

    def predict_stream(self, data):
        yield from data
        while not data[0]:
            yield 0
"""
    path = str(tiny.model(tmp_path / "model", body=body))
    before = front.metrics()
    with grpc.insecure_channel(front.socket) as channel:

        def ask(first: bytes, request_id: str) -> Any:
            asked = api.PredictRequest(model=path, payload=b'{"inputs": [' + first)
            messages = [
                api.PredictStreamRequest(request=asked, function="PREDICT_STREAM"),
                api.PredictStreamRequest(payload=b", 22, 3]}", input_ends=True),
            ]
            stream = services.PredictionsStub(channel).PredictStream
            return stream(iter(messages), metadata=[(ID, request_id)])

        call = ask(b"1", "streamed")
        assert [one.payload for one in call][:-1] == [b"1", b"22", b"3"]
        left = ask(b"0", "left")
        assert next(left).payload == b"0"
        left.cancel()
    wait_for(lambda: "PredictStream CANCELLED" in "".join(front.lines("left")))
    after = front.metrics()

    def more(name: str, **labels: str) -> float:
        key = (name, frozenset(labels.items()))
        return after.get(key, 0) - before.get(key, 0)

    assert dict(call.trailing_metadata())[ID] == "streamed"
    assert "PredictStream OK" in "".join(front.lines("streamed"))
    assert more("envd_requests_total", method="PredictStream", outcome="OK") == 1
    assert more("envd_requests_total", method="PredictStream", outcome="CANCELLED") == 1
    assert more("envd_predict_seconds_count", stage="model", model="") == 1
    assert more("envd_payload_bytes_total", direction="in") == 2 * len(b'{"inputs": [1, 22, 3]}')
    assert more("envd_payload_bytes_total", direction="out") >= 4
    assert after["envd_in_flight_bytes", frozenset()] == 0
    assert set(front.collector.of("streamed")) == {"predict", "environment", "queue", "worker"}


def test_metrics_count_what_happened(front: Front, tiny: Tiny, tmp_path: Path) -> None:
    body = "        import os\n        return os._exit(3) if data == 'die' else 1 / data"
    model = tiny.model(tmp_path / "model", body=body)
    before = front.metrics()
    with front.daemon.client() as client:
        client.predict(model, {"inputs": 1})
        client.predict(model, {"inputs": 2})
        for bad in (0, "die"):
            with pytest.raises(EnvdError):
                client.predict(model, {"inputs": bad})
    after = front.metrics()

    def more(name: str, **labels: str) -> float:
        key = (name, frozenset(labels.items()))
        return after.get(key, 0) - before.get(key, 0)

    assert more("envd_requests_total", method="Predict", outcome="OK") == 2
    assert more("envd_requests_total", method="Predict", outcome="MODEL_RAISED") == 1
    assert more("envd_requests_total", method="Predict", outcome="WORKER_DIED") == 1
    assert more("envd_environment_lookups_total", found="missing") == 1 - int(_is_built(before))
    for stage in ("environment", "queue", "worker", "model"):
        assert more("envd_predict_seconds_count", stage=stage, model="") >= 2
    assert more("envd_payload_bytes_total", direction="in") > 0
    assert sum(more("envd_worker_starts_total", kind=kind) for kind in ("fresh", "forked")) >= 1
    assert more("envd_worker_deaths_total", cause="exit 3") == 1
    assert after["envd_requests_in_flight", frozenset()] == 0
    assert after["envd_queue_depth", frozenset()] == 0
    assert after["process_resident_memory_bytes", frozenset()] > MIB
    assert not [labels for _, labels in after if str(tmp_path) in str(labels)]


def _is_built(metrics: dict[tuple[str, frozenset[tuple[str, str]]], float]) -> bool:
    """Whether the environment that all the models here have was there already."""
    return ("envd_builds_total", frozenset({("outcome", "built")})) in metrics


def test_a_prediction_is_a_trace_below_that_of_its_caller(front: Front, model: Path) -> None:
    trace, parent = secrets.token_hex(16), secrets.token_hex(8)
    with grpc.insecure_channel(front.socket) as channel:
        services.PredictionsStub(channel).Predict(
            api.PredictRequest(model=str(model), payload=b'{"inputs": 1}'),
            metadata=[(ID, "traced"), ("traceparent", f"00-{trace}-{parent}-01")],
        )
    spans = front.collector.of("traced")

    whole = spans["predict"]
    assert (whole.trace_id.hex(), whole.parent_span_id.hex()) == (trace, parent)
    assert whole.status.code == Status.STATUS_CODE_UNSET
    assert set(spans) == {"predict", "environment", "queue", "worker"}
    parts = [spans[name] for name in ("environment", "queue", "worker")]
    assert {one.parent_span_id for one in parts} == {whole.span_id}
    moments = [whole.start_time_unix_nano]
    for one in parts:
        moments += [one.start_time_unix_nano, one.end_time_unix_nano]
    assert moments == sorted(moments)


def attributes(span: Span) -> dict[str, str]:
    return {one.key: one.value.string_value for one in span.attributes}


def test_every_use_is_counted_however_fast_they_come(
    start_daemon: Callable[..., Daemon], tiny: Tiny, tmp_path: Path
) -> None:
    daemon = start_daemon(tmp_path / "root", **tiny.settings)
    model = tiny.model(tmp_path / "model")
    with daemon.client() as client:
        ids = {client.predict(model, {"inputs": 1}).environment_id for _ in range(40)}
        (env_id,) = ids
        wait_for(lambda: client.get(env_id).use_count == 40)
        client.predict(model, {"inputs": 1})
    stop(daemon)

    assert Store(daemon.root).layout.used(env_id).stat().st_size == 41
