"""A worker for corom's own rungs, in a process of its own like every peer's."""

from typing import Any

from corom.runtime import Encoder

from .peer_worker import Opened, serve


def open_rung(job: dict[str, Any]) -> Opened:
    """Open one precision of a bundle by one backend."""
    encoder = Encoder(
        job["folder"],
        backend=job["backend"],
        device="cpu",
        precision=job["precision"],
        threads=job["threads"],
        max_length=job["max_length"],
    )

    def encode(texts: list[str], batch: int | None) -> Any:  # noqa: ANN401
        if len(texts) == 1:
            return encoder.encode(texts[0], normalize_embeddings=False)[None]
        return encoder.encode(texts, batch_size=batch, normalize_embeddings=False)

    return encode, ["corom", "onnxruntime"]


if __name__ == "__main__":
    serve({"corom": open_rung})
