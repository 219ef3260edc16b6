"""A worker for corom's own rungs, in a process of its own like every peer's."""

from typing import Any

from corom.runtime import Encoder

from .peer_worker import Opened, serve


def open_rung(job: dict[str, Any]) -> Opened:
    """Open one precision of a bundle by one backend; texts go by 1 worker, or by as many as asked.

    Workers share the threads: each has its part of them.
    """
    threads = job["threads"]

    def opened(workers: int) -> Encoder:
        return Encoder(
            job["folder"],
            backend=job["backend"],
            device="cpu",
            precision=job["precision"],
            threads=max(1, threads // workers),
            workers=workers,
            max_length=job["max_length"],
        )

    encoders = {workers: opened(workers) for workers in sorted({1, threads})}

    def encode(texts: list[str], setting: int | None) -> Any:  # noqa: ANN401
        encoder = encoders[setting or 1]
        if len(texts) == 1:
            return encoder.encode(texts[0], normalize_embeddings=False)[None]
        return encoder.encode(texts, normalize_embeddings=False)

    return encode, ["corom", *PACKAGES[job["backend"]]]


PACKAGES = {"onnxruntime": ["onnxruntime"], "openvino": ["openvino"]}


if __name__ == "__main__":
    serve({"corom": open_rung})
