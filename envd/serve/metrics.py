"""What the daemon counts and measures, for Prometheus.

No label holds a path, a URI or anything else of a caller's: models are known by the name they
are served by, and all others together have none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
    start_http_server,
)

from envd.errors import SettingsInvalidError
from envd.run.observer import Kind, Observer
from envd.serve.calls import Call, Calls
from envd.serve.in_flight import InFlight
from envd.settings import values

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60)
_BUILD_SECONDS = (0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class Metrics(Observer):
    """The metrics of one daemon: of its requests, its workers and its builds."""

    def __init__(self, calls: Calls, in_flight: InFlight) -> None:
        """Measure what is under way when it is asked for, and count what is told."""
        self._registry = registry = CollectorRegistry()
        disable_created_metrics()  # type: ignore[no-untyped-call]
        ProcessCollector(registry=registry)

        def gauge(name: str, meaning: str, now: Callable[[], float]) -> None:
            Gauge(name, meaning, registry=registry).set_function(now)

        def counter(name: str, meaning: str, *labels: str) -> Callable[..., Counter]:
            # Finding the one with certain labels takes longer than counting.
            return cache(Counter(name, meaning, labels, registry=registry).labels)

        gauge("envd_requests_in_flight", "Requests under way.", lambda: calls.count)
        gauge("envd_in_flight_bytes", "Bytes of input under way.", lambda: in_flight.bytes)
        self._queued = Gauge(
            "envd_queue_depth", "Requests that wait for a worker.", registry=registry
        )
        self._requests = counter("envd_requests", "Requests ended.", "method", "outcome")
        seconds = Histogram(
            "envd_predict_seconds",
            "Where the time of predictions went; `worker` includes `model`.",
            ("stage", "model"),
            buckets=_SECONDS,
            registry=registry,
        )
        self._seconds = cache(seconds.labels)
        self._bytes = counter("envd_payload_bytes", "Bytes of predictions.", "direction")
        self._lookups = counter(
            "envd_environment_lookups", "Predictions that looked for an environment.", "found"
        )
        self._starts = counter("envd_worker_starts", "Workers started.", "kind")
        self._deaths = counter("envd_worker_deaths", "Workers that died.", "cause")
        self._evictions = counter("envd_evictions", "Workers and templates stopped.", "why")
        self._builds = counter("envd_builds", "Builds ended.", "outcome")
        self._build_seconds = Histogram(
            "envd_build_seconds", "How long builds took.", buckets=_BUILD_SECONDS, registry=registry
        )

    def text(self) -> bytes:
        """Return them as Prometheus reads them."""
        return generate_latest(self._registry)

    def serve(self, address: str, hosts: Collection[str]) -> str:
        """Answer at *address*, HOST:PORT, as long as the process lives; return the URL.

        To a browser they are of this machine, or one of *hosts*: what a page of a site whose
        name was led here asks for is refused.

        Raises:
            SettingsInvalidError: it cannot be listened on.
        """
        host, _, port = address.rpartition(":")
        try:
            server, _ = start_http_server(int(port), host.strip("[]"), self._registry)
        except OSError as error:
            message = (
                f"the daemon cannot serve metrics at `{address}`: {error}; set `daemon.metrics`"
            )
            raise SettingsInvalidError(message, setting="daemon.metrics") from error
        tell: Any = server.get_app()

        def answer(environ: Any, start: Any) -> Any:
            name = values.host_of(environ.get("HTTP_HOST", ""))
            if not name or values.is_own(name) or name in map(str.lower, hosts):
                return tell(environ, start)
            start("403 Forbidden", [("content-type", "text/plain")])
            return [b"`Host` is none of this machine's, nor of `http.hosts`\n"]

        server.set_app(answer)
        return f"http://{host}:{server.server_port}/metrics"

    def ended(self, call: Call) -> None:
        """Count a request."""
        self._requests(call.method.rpartition("/")[2], call.outcome).inc()
        if not call.is_prediction:
            return
        for stage, seconds in call.stages.items():
            self._seconds(stage, call.model).observe(seconds)
        if call.stages:
            self._lookups("missing" if call.was_missing else "ready").inc()
        self._bytes("in").inc(call.bytes_in)
        self._bytes("out").inc(call.bytes_out)

    def queued(self, delta: int) -> None:
        """Follow the depth of the queues."""
        self._queued.inc(delta)

    def worker_started(self, kind: Kind) -> None:
        """Count a worker."""
        self._starts(kind).inc()

    def worker_died(self, cause: str) -> None:
        """Count a death."""
        self._deaths(cause).inc()

    def evicted(self, why: str) -> None:
        """Count a worker or a template that was stopped."""
        self._evictions(why).inc()

    def built(self, outcome: str, seconds: float) -> None:
        """Count a build."""
        self._builds(outcome).inc()
        self._build_seconds.observe(seconds)
