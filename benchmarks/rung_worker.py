"""A worker for corom's own rungs, in a process of its own like every peer's.

Beside what `peer_worker.py` documents: {"do": "callers", "texts": […], "callers": n, "seconds": s}
lets n threads each ask a DynamicBatcher for one text after another, and answers with the latency of
each and how long all took, in seconds.
"""

from typing import Any

from corom.runtime import DynamicBatcher, Encoder

from .load import closed_loop_callers
from .peer_worker import Opened, serve

PACKAGES = {"onnxruntime": ["onnxruntime"], "openvino": ["openvino"], "native": []}


class Rung:
    """One precision of a bundle by one backend: opened for one worker, and for one on each CPU."""

    def __init__(self) -> None:
        self._encoders: dict[int, Encoder] = {}

    def open(self, job: dict[str, Any]) -> Opened:
        """Open what the job names; workers share the threads, each has its part of them."""
        threads = job["threads"]
        for workers in sorted({1, threads}):
            self._encoders[workers] = Encoder(
                job["folder"],
                backend=job["backend"],
                device="cpu",
                precision=job["precision"],
                threads=max(1, threads // workers),
                workers=workers,
                max_length=job["max_length"],
            )
        return self.encode, ["corom", *PACKAGES[job["backend"]]]

    def encode(self, texts: list[str], setting: int | None) -> Any:  # noqa: ANN401
        """Return the vectors (N, H); the setting is how many workers execute."""
        encoder = self._encoders[setting or 1]
        if len(texts) == 1:
            return encoder.encode(texts[0], normalize_embeddings=False)[None]
        return encoder.encode(texts, normalize_embeddings=False)

    def callers(self, job: dict[str, Any]) -> dict[str, Any]:
        """Measure many callers of single texts; the setting is how many workers execute."""
        with DynamicBatcher(self._encoders[job["setting"] or 1]) as batcher:
            served = closed_loop_callers(
                batcher.submit, job["texts"], job["seconds"], job["callers"]
            )
        return {"latencies": served.latencies, "elapsed": served.elapsed}


if __name__ == "__main__":
    rung = Rung()
    serve({"corom": rung.open}, {"callers": rung.callers})
