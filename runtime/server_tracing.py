"""Traces for an OpenTelemetry collector: one span a request, made when it has ended.

Loaded only with --otlp-endpoint. Knows the record of a request, and nothing of how it was answered.
"""

import threading
import time
from collections.abc import Callable
from importlib import metadata

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from .server_call import Call

FAREWELL_S = 2.0


class Tracing:
    """Sends spans to ``endpoint``, in a thread of its own. ``close`` sends what is left."""

    def __init__(self, endpoint: str, service_name: str) -> None:
        version = metadata.version("corom")
        resource = Resource.create({"service.name": service_name, "service.version": version})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("corom.serve", version)
        self._extract: Callable[..., object] = TraceContextTextMapPropagator().extract

    def observe(self, call: Call, route: str) -> None:
        """Make the span of a request that has ended; its parent is the client's traceparent."""
        end_ns = time.time_ns()
        carrier = {"traceparent": call.traceparent} if call.traceparent else {}
        span = self._tracer.start_span(
            f"{call.method} {route}",
            context=self._extract(carrier),  # type: ignore[arg-type]
            kind=SpanKind.SERVER,
            start_time=end_ns - int(call.seconds * 1e9),
        )
        usage = call.usage
        span.set_attributes(
            {
                "http.request.method": call.method,
                "http.route": route,
                "http.response.status_code": call.status,
                "corom.request_id": call.id,
                "corom.texts": usage.texts,
                "corom.tokens": usage.tokens,
                "corom.truncated_texts": usage.truncated,
                "corom.tokenization_seconds": usage.tokenization_s,
                "corom.queue_seconds": usage.queue_s,
                "corom.inference_seconds": usage.inference_s,
            }
        )
        if call.failure is not None:
            span.set_attribute("error.type", call.failure)
        if call.status >= 500:
            span.set_status(StatusCode.ERROR)
        span.end(end_ns)

    def close(self) -> None:
        """Send what is left, as far as the collector takes it within ``FAREWELL_S``."""
        # A thread that may be left behind: who cannot reach a collector tries again and again.
        sending = threading.Thread(target=self._provider.shutdown, daemon=True)
        sending.start()
        sending.join(FAREWELL_S)
