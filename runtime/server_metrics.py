"""What the server counts, for Prometheus: TEI's names, and corom's own beside them."""

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from prometheus_client import CollectorRegistry, Gauge, generate_latest, start_http_server
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from .errors import UnavailableError
from .server_call import Call
from .server_metrics_batcher import BatcherMetrics
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

TEXTS = {
    "corom_texts": "Texts",
    "corom_tokens": "Tokens",
    "corom_truncated_texts": "Texts that were cut,",
}
OTHER = "other"
"""The route of what has none."""
FOR_VECTORS = frozenset({"/v1/embeddings", "/embeddings", "/embed", "/", "/similarity"})
"""What is posted here TEI counts."""
ROWS = 1024
"""Requests that are kept before they are added up."""


class Row(NamedTuple):
    """A request that has ended, as it is counted."""

    route: str
    for_vectors: bool
    status: int
    failure: str | None
    method: str
    texts: int
    tokens: int
    truncated: int
    seconds: tuple[float, ...]
    """By stage."""


class Metrics:
    """What is counted a request. Rows are kept and added up together: that takes a tenth."""

    def __init__(self, service: Service) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        registry.register(BatcherMetrics(service))
        self._requests = _Requests()
        registry.register(self._requests)
        in_hand = Gauge("corom_requests_in_hand", "Requests not answered yet.", registry=registry)
        in_hand.set_function(lambda: service.in_hand)
        late = Gauge(
            "corom_event_loop_late_seconds",
            "How late the event loop was, at least, two of the last three times.",
            registry=registry,
        )
        late.set_function(lambda: service.lateness.seconds)

    def observe(self, call: Call, route: str) -> None:
        """Count a request that has ended; ``route``: its path, or "other"."""
        usage = call.usage
        self._requests.add(
            Row(
                route,
                call.method == "POST" and route in FOR_VECTORS,
                call.status,
                call.failure,
                "single" if call.single else "batch",
                usage.texts,
                usage.tokens,
                usage.truncated,
                (call.seconds, usage.tokenization_s, usage.queue_s, usage.inference_s),
            )
        )

    def serve(self, hostname: str, port: int) -> None:
        """Serve them on a port of their own, from a thread."""
        try:
            start_http_server(port, hostname, self._registry)
        except OSError as error:
            raise UnavailableError(
                f"cannot listen on {hostname}:{port} for metrics: {error.strerror}. "
                "Choose another --prometheus-port."
            ) from None

    def exposition(self) -> bytes:
        """Return everything in Prometheus's text format."""
        return generate_latest(self._registry)


class Distribution:
    """A histogram that values are added to many at a time."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = np.zeros(len(bounds) + 1, np.int64)
        self._total = 0.0

    def add(self, values: list[float]) -> None:
        """Add values; one that equals a bound is below it, as Prometheus has it."""
        places = np.searchsorted(self._bounds, values, side="left")
        self._counts += np.bincount(places, minlength=len(self._counts))
        self._total += sum(values)

    def buckets(self) -> list[tuple[str, float]]:
        """Return how many values are at most each bound."""
        names = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        return list(zip(names, self._counts.cumsum().tolist(), strict=True))

    @property
    def total(self) -> float:
        """The sum of all values."""
        return self._total


class _Requests:
    """The counters of requests."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: list[Row] = []
        self._answers: Counter[tuple[str, ...]] = Counter()
        self._failures: Counter[tuple[str, ...]] = Counter()
        self._asked: Counter[tuple[str, ...]] = Counter({("single",): 0, ("batch",): 0})
        self._succeeded: Counter[tuple[str, ...]] = Counter({("single",): 0, ("batch",): 0})
        self._failed: Counter[tuple[str, ...]] = Counter()
        self._sums = {"corom_texts": 0, "corom_tokens": 0, "corom_truncated_texts": 0}
        self._stages = {stage: Distribution(SECONDS) for stage in STAGES}
        self._lengths = Distribution(tuple(2.0**k for k in range(3, 18)))

    def add(self, row: Row) -> None:
        """Keep a row; the event loop calls this."""
        self._rows.append(row)
        if len(self._rows) >= ROWS:
            self._add_up()

    def _add_up(self) -> None:
        with self._lock:
            rows, self._rows = self._rows, []
            if not rows:
                return
            self._answers.update((row.route, str(row.status)) for row in rows)
            failed = [row for row in rows if row.failure is not None]
            self._failures.update((row.route, str(row.failure)) for row in failed)
            answered = [row for row in rows if row.failure is None and row.texts]
            refused = [row for row in failed if row.for_vectors]
            self._failed.update((str(row.failure),) for row in refused)
            self._succeeded.update((row.method,) for row in answered)
            self._asked.update((row.method,) for row in [*answered, *refused])
            self._sums["corom_texts"] += sum(row.texts for row in answered)
            self._sums["corom_tokens"] += sum(row.tokens for row in answered)
            self._sums["corom_truncated_texts"] += sum(row.truncated for row in answered)
            self._lengths.add([row.tokens for row in answered])
            for k, distribution in enumerate(self._stages.values()):
                distribution.add([row.seconds[k] for row in answered])

    def collect(self) -> Iterator[Metric]:
        """Yield the counters."""
        self._add_up()
        with self._lock:
            yield _table(
                "corom_requests",
                "Requests by route and status.",
                ("route", "status"),
                self._answers,
            )
            yield _table(
                "corom_request_failures",
                "Requests refused or failed, by kind.",
                ("route", "kind"),
                self._failures,
            )
            for name, value in self._sums.items():
                yield _table(name, f"{TEXTS[name]} of the requests answered.", (), {(): value})
            yield _table(
                "te_request_count", "Requests for vectors.", ("method",), self._asked, "unknown"
            )
            yield _table(
                "te_request_success", "Those answered.", ("method",), self._succeeded, "unknown"
            )
            yield _table(
                "te_request_failure", "Those refused or failed.", ("err",), self._failed, "unknown"
            )
            seconds = HistogramMetricFamily(
                "corom_request_seconds", "Time of answered requests by stage.", labels=["stage"]
            )
            for stage, found in self._stages.items():
                seconds.add_metric([stage], found.buckets(), found.total)
                name = TEI_DURATIONS[stage]
                yield _histogram(name, f"TEI's name for the {stage} time.", found)
            yield seconds
            yield _histogram("te_request_input_length", "Tokens of a request.", self._lengths)


def _table(
    name: str,
    text: str,
    labels: tuple[str, ...],
    values: Mapping[tuple[str, ...], float],
    kind: str = "counter",
) -> Metric:
    """Return a counter; of the kind "unknown" its name need not end in _total, as TEI's do not."""
    metric = Metric(name, text, kind)
    suffix = "_total" if kind == "counter" else ""
    for key, value in values.items():
        metric.add_sample(name + suffix, dict(zip(labels, key, strict=True)), value)
    return metric


def _histogram(name: str, text: str, found: Distribution) -> Metric:
    return HistogramMetricFamily(name, text, buckets=found.buckets(), sum_value=found.total)
