"""The batcher's counters as Prometheus reads them, taken when somebody asks."""

from collections.abc import Iterable, Iterator

from prometheus_client.core import HistogramMetricFamily, Metric

from .counters import Counters
from .server_service import Service


class BatcherMetrics:
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
        "corom_expired": ("Pieces of calls given up because they waited too long.", c.expired),
        "corom_cancelled": ("Pieces of calls that nobody wants any more.", c.cancelled),
        "corom_failed": ("Pieces of calls that failed after they were admitted.", c.failed),
        "corom_put_aside": ("Batches executed in the middle of one of bulk.", c.put_aside),
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
