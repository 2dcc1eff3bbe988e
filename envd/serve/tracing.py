"""Traces of predictions for OpenTelemetry, where a collector is named and the extra is there.

OTEL_EXPORTER_OTLP_ENDPOINT names it; the other variables of OpenTelemetry count as well. A
caller's `traceparent` (https://www.w3.org/TR/trace-context/) is the parent of its trace.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping

import envd
from envd.serve.calls import Call

log = logging.getLogger(__name__)
_COLLECTOR = "OTEL_EXPORTER_OTLP_ENDPOINT"
# Which stages each span has; one begins where the one before has ended.
_SPANS = {"environment": ("environment",), "queue": ("queue", "start"), "worker": ("worker",)}
_LONGEST_FLUSH_S = 2


def start(environ: Mapping[str, str] = os.environ) -> Tracing | None:
    """Return what makes traces, or None where nobody wants them."""
    if not environ.get(_COLLECTOR):
        return None
    try:
        return Tracing(environ.get("OTEL_SERVICE_NAME", "envd"))
    except ImportError as error:
        log.warning(
            "%s is set, and `%s` is missing; add `envd-daemon[otel]`", _COLLECTOR, error.name
        )
        return None


class Tracing:
    """Makes a trace of each prediction when it has ended, and sends it from a thread."""

    def __init__(self, service: str) -> None:
        """Call the daemon *service*."""
        from opentelemetry import trace  # noqa: PLC0415
        from opentelemetry.exporter.otlp.proto.grpc import trace_exporter  # noqa: PLC0415
        from opentelemetry.sdk import resources  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider, export  # noqa: PLC0415
        from opentelemetry.trace.propagation import tracecontext  # noqa: PLC0415

        about = {"service.name": service, "service.version": envd.__version__}
        self._provider = TracerProvider(resource=resources.Resource.create(about))
        exporter = trace_exporter.OTLPSpanExporter()
        self._provider.add_span_processor(export.BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("envd", envd.__version__)
        self._context = tracecontext.TraceContextTextMapPropagator()
        self._trace = trace

    def ended(self, call: Call) -> None:
        """Trace a prediction: a span for all of it, and below it one for each part."""
        if not call.is_prediction:
            return
        end = time.time_ns()
        begin = end - int(1e9 * call.seconds)
        given = {key: value for key, value in call.metadata if isinstance(value, str)}
        about = {"envd.request_id": call.id, "envd.outcome": call.outcome, "envd.model": call.model}
        whole = self._tracer.start_span(
            "predict",
            self._context.extract(given),
            kind=self._trace.SpanKind.SERVER,
            attributes=about,
            start_time=begin,
        )
        if call.outcome != "OK":
            whole.set_status(self._trace.StatusCode.ERROR, call.outcome)
        within = self._trace.set_span_in_context(whole)
        for name, stages in _SPANS.items():
            taken = [call.stages[stage] for stage in stages if stage in call.stages]
            if taken:
                span = self._tracer.start_span(name, within, start_time=begin)
                begin += int(1e9 * sum(taken))
                if name == "worker":
                    span.set_attribute("envd.model_seconds", call.stages["model"])
                span.end(begin)
        whole.end(end)

    def close(self) -> None:
        """Send what is left, if the collector takes it without much ado."""
        sending = threading.Thread(target=self._provider.shutdown, daemon=True)
        sending.start()
        sending.join(_LONGEST_FLUSH_S)
