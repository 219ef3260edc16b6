"""What the server counts, for Prometheus: TEI's names, and corom's own beside them."""

from collections.abc import Iterable, Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    start_http_server,
)
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from .counters import Counters
from .server_call import Call
from .server_service import Service

SECONDS = (
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30,
)  # fmt: skip
STAGES = ("total", "tokenization", "queue", "inference")
TEI_DURATIONS = {
    "total": "te_request_duration",
    "tokenization": "te_request_tokenization_duration",
    "queue": "te_request_queue_duration",
    "inference": "te_request_inference_duration",
}


class Metrics:
    """The registry, and what is counted a request."""

    def __init__(self, service: Service) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        registry.register(_Batcher(service))
        self._counts = _Counts()
        registry.register(self._counts)
        self._answers = Counter(
            "corom_requests", "Requests by route and status.", ("route", "status"),
            registry=registry,
        )  # fmt: skip
        self._failures = Counter(
            "corom_request_failures", "Requests that were refused or failed, by kind.",
            ("route", "kind"), registry=registry,
        )  # fmt: skip
        self._texts = Counter("corom_texts", "Texts answered.", registry=registry)
        self._tokens = Counter("corom_tokens", "Tokens of the texts answered.", registry=registry)
        self._truncated = Counter(
            "corom_truncated_texts", "Texts answered that were cut.", registry=registry
        )
        stages = Histogram(
            "corom_request_seconds", "Time of answered requests by stage.", ("stage",),
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self._stages = [
            (
                stages.labels(stage),
                Histogram(name, f"TEI's name for the {stage} time.", buckets=SECONDS,
                          registry=registry),
            )
            for stage, name in TEI_DURATIONS.items()
        ]  # fmt: skip
        self._lengths = Histogram(
            "te_request_input_length", "Tokens of a request.",
            buckets=[2.0**k for k in range(3, 18)], registry=registry,
        )  # fmt: skip
        in_hand = Gauge("corom_requests_in_hand", "Requests not answered yet.", registry=registry)
        in_hand.set_function(lambda: service.in_hand)

    def observe(self, call: Call, route: str) -> None:
        """Count a request that has ended; ``route``: its path, or "other"."""
        self._answers.labels(route, str(call.status)).inc()
        if call.failure is not None:
            self._failures.labels(route, call.failure).inc()
        usage = call.usage
        method = "single" if call.single else "batch"
        if call.failure is not None and route != "other":
            self._counts.fail(method, call.failure)
        if not usage.texts or call.failure is not None:
            return
        self._counts.succeed(method)
        self._texts.inc(usage.texts)
        self._tokens.inc(usage.tokens)
        self._truncated.inc(usage.truncated)
        self._lengths.observe(usage.tokens)
        times = (call.seconds, usage.tokenization_s, usage.queue_s, usage.inference_s)
        for seconds, (stage, tei) in zip(times, self._stages, strict=True):
            stage.observe(seconds)
            tei.observe(seconds)

    def serve(self, hostname: str, port: int) -> None:
        """Serve them on a port of their own, from a thread."""
        start_http_server(port, hostname, self._registry)

    def exposition(self) -> bytes:
        """Return everything in Prometheus's text format."""
        return generate_latest(self._registry)


class _Counts:
    """TEI's counters, whose names do not end in _total as the client's own must."""

    def __init__(self) -> None:
        self._succeeded = {"single": 0, "batch": 0}
        self._failed: dict[str, int] = {}
        self._asked = {"single": 0, "batch": 0}

    def succeed(self, method: str) -> None:
        """Count an answered request."""
        self._asked[method] += 1
        self._succeeded[method] += 1

    def fail(self, method: str, kind: str) -> None:
        """Count a request that was not answered as asked."""
        self._asked[method] += 1
        self._failed[kind] = self._failed.get(kind, 0) + 1

    def collect(self) -> Iterator[Metric]:
        """Yield the counters; "unknown" is the one type that leaves a name as it is."""
        tables = {
            "te_request_count": ("method", self._asked, "Requests for vectors."),
            "te_request_success": ("method", self._succeeded, "Those answered."),
            "te_request_failure": ("err", self._failed, "Those refused or failed."),
        }
        for name, (label, table, text) in tables.items():
            metric = Metric(name, text, "unknown")
            for value, count in table.items():
                metric.add_sample(name, {label: value}, count)
            yield metric


class _Batcher:
    """The batcher's counters, read when somebody asks."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        """Yield them; nothing before the encoder is open."""
        ready = Metric("corom_ready", "1 once warmed up and until draining.", "gauge")
        ready.add_sample("corom_ready", {}, float(self._service.state == "ready"))
        yield ready
        if self._service.state == "starting":
            return
        yield from batcher_metrics(self._service.batcher.counters())


def batcher_metrics(c: Counters) -> Iterator[Metric]:
    """Yield a batcher's counters as metrics."""
    gauges = {
        "te_queue_size": ("Texts that wait for a batch.", c.waiting_texts),
        "corom_queue_texts": ("Texts that wait for a batch.", c.waiting_texts),
        "corom_queue_tokens": ("Tokens that wait for a batch.", c.waiting_tokens),
        "corom_running_texts": ("Texts that are executed right now.", c.running_texts),
    }
    counters = {
        "corom_executed_texts": ("Texts executed.", c.texts),
        "corom_batches": ("Batches executed.", c.batches),
        "corom_executed_tokens": ("Tokens executed, without padding.", c.batch_tokens),
        "corom_padded_tokens": ("Tokens executed, padding included.", c.padded_tokens),
        "corom_overloaded": ("Calls refused because the queue was full.", c.overloaded),
        "corom_expired": ("Calls given up because they waited too long.", c.expired),
        "corom_cancelled": ("Calls given up because the client went away.", c.cancelled),
        "corom_failed": ("Calls that failed after they were admitted.", c.failed),
        "corom_execution_seconds": ("Time that executions took.", c.run_seconds),
    }
    for kind, table in (("gauge", gauges), ("counter", counters)):
        for name, (text, value) in table.items():
            metric = Metric(name, text, kind)
            metric.add_sample(name + ("_total" if kind == "counter" else ""), {}, value)
            yield metric
    for prefix in ("te_batch_next", "corom_batch"):
        yield _powers(f"{prefix}_size", "Texts of a batch.", c.sizes, c.texts)
        yield _powers(f"{prefix}_tokens", "Tokens of a batch.", c.token_sizes, c.batch_tokens)


def _powers(name: str, text: str, counts: Iterable[int], total: float) -> Metric:
    """Return the histogram whose bucket k holds what is below 2**k."""
    buckets, seen = [], 0
    for k, count in enumerate(counts):
        seen += count
        buckets.append((str(float(2**k - 1)), seen))
    buckets[-1] = ("+Inf", seen)
    return HistogramMetricFamily(name, text, buckets=buckets, sum_value=total)
