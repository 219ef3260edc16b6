"""Encoder: texts in, vectors out. Owns the sequence tokens → batches → backend and nothing else."""

import logging
import threading
from collections.abc import Callable, Iterable
from contextlib import closing
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, Unpack, cast

import numpy as np

from .backend import Backend, Sharing, Streaming, Warming, open_backend
from .batching import Batch, pad, plan_batches
from .choice import Asked, choose
from .engine_cache import EngineCache
from .errors import InputError, ParityError, closed_encoder
from .manifest import Tolerance, checked_file, load_manifest
from .offline import distinct, execute, one_ahead
from .options import (
    EncodeOptions,
    Wish,
    as_texts,
    check_options,
    positive,
    with_document_prompt,
    with_prompt,
)
from .preemption import Preemption
from .progress import progress_bar
from .proof import ROUNDED, prove
from .tokens import Tokenizer, Tokens, Truncate, are_ids
from .tuning import Goal
from .vectors import Vectors, are_finite, grow, similarity
from .windows import windows

logger = logging.getLogger("corom")
cut_logger = logging.getLogger("corom.cut")


class Encoder:
    """Opens a bundle and turns texts into vectors. Threads may share one encoder.

    ``backend``, ``device`` and ``precision``: "auto", or a name; a name that is not here is an
    ``UnavailableError``, never replaced by another. ``threads``: CPU threads of one execution; None
    takes the CPUs this process may use, divided among the workers. ``workers``: executions at once;
    None is 1, best for one text at a time; as many as CPUs is best for many texts.
    ``max_batch_tokens``: upper bound of rows × padded length of one execution; a backend that is
    faster with less takes less. ``max_length``: tokens a text is cut to; None takes the manifest's.
    ``truncated_texts`` counts the texts cut so far.
    ``engine_cache``: "auto" builds a TensorRT engine for this machine once if none of the bundle's
    fits, and keeps it in the cache. ``cuda_graphs``: replay one captured graph a shape; None does
    so for engines and fused graphs; ONNX Runtime replays a portable graph's one at a time.
    ``tuned``: where backend, precision, threads and workers are left to corom, what `corom tune`
    found fastest here for many texts ("throughput") or for one ("latency") is taken; "off" ignores
    it. ``adaptive``: for a ``DynamicBatcher`` on a CPU, where ``workers`` is left open: a batch by
    all threads while nothing else is asked for, otherwise as many batches at once as threads,
    whatever was tuned. By another backend than native the model is opened twice for that.
    ``encode`` takes one thread a batch.

    Raises ``BundleError`` for a bundle that is incomplete or altered.
    """

    def __init__(
        self,
        bundle: str | Path,
        *,
        backend: str = "auto",
        device: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
        workers: int | None = None,
        max_batch_tokens: int = 16384,
        max_length: int | None = None,
        engine_cache: EngineCache = "off",
        cuda_graphs: bool | None = None,
        tuned: Goal | Literal["off"] = "throughput",
        adaptive: bool = False,
    ) -> None:
        folder = Path(bundle)
        self.manifest = manifest = load_manifest(folder)
        self.max_length = manifest.max_length if max_length is None else max_length
        asked = Asked(backend, device, precision, threads, workers, engine_cache, tuned, adaptive)
        self._choice = choice = choose(folder, manifest, asked)
        self.backend_name, self.device = choice.backend, choice.device
        self.precision = choice.variant.precision
        self.truncated_texts = 0
        positive("max_batch_tokens", max_batch_tokens)
        tokenizer_json = checked_file(folder, manifest.entry("tokenizer.json")).read_bytes()
        self._tokenizer = Tokenizer(tokenizer_json, self.max_length, manifest.max_positions)
        opened = partial(
            open_backend,
            choice.backend,
            choice.device,
            folder,
            manifest,
            choice.variant,
            engine_cache=engine_cache,
            cuda_graphs=cuda_graphs,
        )
        self._backend = opened(threads=choice.threads, workers=choice.workers)
        self.workers = choice.workers or 1
        self.preemptible = isinstance(self._backend, Sharing) and choice.threads == 1
        """Whether a batch can be put aside while it is executed: several threads would all wait."""
        self._wide: Backend | None = None
        if choice.all_threads is not None:
            try:
                self._wide = (
                    self._backend.with_threads(choice.all_threads)
                    if isinstance(self._backend, Sharing)
                    else opened(threads=choice.all_threads)
                )
            except BaseException:
                self._backend.close()
                raise
        winner = choice.winner
        best_tokens = winner.batch_tokens if winner else self._backend.batch_tokens
        self.batch_tokens = min(max_batch_tokens, best_tokens)
        self._closed = False
        self._before_close: dict[Callable[[], None], None] = {}
        self._lock = threading.Lock()
        # Without parity it is about to be measured, by the exporter. The kernels are compiled here,
        # OpenVINO's model may come from its cache, and what a GPU computes was not seen at export.
        made_here = self.device == "cuda" or self.backend_name in {"native", "openvino"}
        differs = made_here or self.precision in ROUNDED
        if self.backend_name == "tensorrt" or (differs and choice.variant.parity):
            self._prove(folder, tokenizer_json, choice.variant.tolerance)
        logger.info("%s: %s", manifest.name, self.choice)

    @property
    def dimension(self) -> int:
        """Number of values of a vector."""
        return self.manifest.dimension

    @property
    def choice(self) -> str:
        """What executes, in words; says what "auto" chose."""
        return str(self._choice)

    def encode(
        self,
        texts: str | Iterable[str],
        *,
        normalize_embeddings: bool | None = None,
        truncate_dim: int | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
        truncate: Truncate = True,
        show_progress_bar: bool = False,
        batch_size: int | None = None,
    ) -> Vectors:
        """Return the float32 vector (H,) of one text, or (N, H) of several, in their order.

        ``normalize_embeddings``: scale to length 1; None does as the manifest says.
        ``truncate_dim``: keep only the first values, before scaling. ``prompt``: put before each
        text; ``prompt_name``: the same, by its name in the manifest. ``truncate``: True cuts texts
        to ``max_length`` tokens and warns once, "left" keeps their end instead of their beginning,
        "error" refuses longer ones, False takes them whole up to the positions the model has.
        ``batch_size``: most rows of one execution.

        Raises ``InputTypeError`` for anything but text and ``InputError`` for text that cannot be
        encoded, naming its position.
        """
        self.require_open()
        wish = check_options(
            self.manifest,
            normalize_embeddings=normalize_embeddings,
            truncate_dim=truncate_dim,
            prompt=prompt,
            prompt_name=prompt_name,
            truncate=truncate,
        )
        size = None if batch_size is None else positive("batch_size", batch_size)
        if isinstance(texts, str):
            tokens = self.tokenize(texts, wish)
            batch = Batch(np.array(tokens.ids, np.int64), tokens.lengths)
            vector: Vectors = wish.finish(self.run(batch))[0]
            return vector
        return wish.finish(self._encode_all(texts, wish, size, show_progress_bar))

    def encode_query(self, texts: str | Iterable[str], **options: Unpack[EncodeOptions]) -> Vectors:
        """Encode with the manifest's prompt "query", if it has one; otherwise as ``encode``."""
        return self.encode(texts, **with_prompt("query", self.manifest.prompts, options))

    def encode_document(
        self, texts: str | Iterable[str], **options: Unpack[EncodeOptions]
    ) -> Vectors:
        """Encode with the manifest's prompt "document" or "passage", if any; else as ``encode``."""
        return self.encode(texts, **with_document_prompt(self.manifest.prompts, options))

    def token_ids(self, texts: Iterable[str], *, truncate: Truncate = True) -> list[list[int]]:
        """Return the ids each text is executed as, special tokens included."""
        return self._tokenizer(list(as_texts(texts)[0]), truncate=truncate).ids

    @property
    def tokenizer(self) -> Tokenizer:
        """What turns texts into ids."""
        return self._tokenizer

    def tokenize(
        self, texts: str | list[str] | list[list[int]], wish: Wish, first: int = 0
    ) -> Tokens:
        """Return the tokens of one text or several, and count those that were cut.

        Texts may be given as ids, all of them; see ``Text``. ``first``: position of the first
        text, for messages.
        """
        if isinstance(texts, str):
            tokens = self._tokenizer.one(texts, prefix=wish.prefix, truncate=wish.truncate)
        elif are_ids(texts):
            if wish.prefix:
                raise InputError("a prompt cannot be put before token ids. Send the text itself.")
            tokens = self._tokenizer.from_ids(texts, truncate=wish.truncate, first=first)
        else:
            plain = cast("list[str]", texts)
            tokens = self._tokenizer(plain, prefix=wish.prefix, truncate=wish.truncate, first=first)
        if tokens.truncated:
            self._note_truncated(tokens.truncated)
        return tokens

    def tokenize_each(self, texts: list[str], wish: Wish) -> list[Tokens]:
        """Return the tokens of each text by itself, and count those cut: see ``Tokenizer.each``."""
        found = self._tokenizer.each(texts, prefix=wish.prefix, truncate=wish.truncate)
        if truncated := sum(tokens.truncated for tokens in found):
            self._note_truncated(truncated)
        return found

    def run(self, batch: Batch, preemption: Preemption | None = None) -> Vectors:
        """Execute one batch and return its un-normalized vectors (B, H).

        ``preemption``: what may put it aside, if the encoder is ``preemptible``; in its middle the
        same thread may call this again. Raises ``ParityError`` if a vector holds NaN or infinity.
        """
        return self._checked(self._backend, batch, preemption)

    @property
    def adaptive(self) -> bool:
        """Whether a batch that is alone is executed by the threads of all workers."""
        return self._wide is not None

    def run_alone(self, batch: Batch) -> Vectors:
        """As ``run``, by the threads of all workers; nothing else should be executed meanwhile."""
        return self._checked(self._wide or self._backend, batch)

    def warm(self, batch: Batch) -> None:
        """Execute a batch until what a GPU keeps for its shape is there, such as its graphs."""
        self.require_open()
        if isinstance(self._backend, Warming):
            self._backend.warm(batch)
        else:
            self._backend.run(batch)

    def encode_tokens(self, tokens: Tokens) -> Vectors:
        """Return the un-normalized vectors (N, H) of N texts that are token ids already."""
        self.require_open()
        vectors = np.empty((len(tokens.ids), self.dimension), np.float32)
        self._execute(tokens, vectors, None)
        self._require_finite(vectors, 0)
        return vectors

    def encode_together(self, texts: list[str]) -> Vectors:
        """Return the un-normalized vectors of texts executed as one batch, padded to the longest.

        For measuring what a batch does to a vector; ``encode`` makes better batches.
        """
        tokens = self._tokenizer(texts)
        rows = np.argsort(-tokens.lengths, kind="stable")
        vectors = np.empty((len(texts), self.dimension), np.float32)
        vectors[rows] = self._backend.run(pad(tokens, rows))
        return vectors

    def similarity(self, queries: Vectors, documents: Vectors) -> Vectors:
        """Return the scores (Q, D) of (Q, H) against (D, H), dot or cosine as the manifest says."""
        return similarity(queries, documents, self.manifest.similarity)

    def before_close(self, call: Callable[[], None]) -> Callable[[], None]:
        """Have ``call`` made before the backend is released; returns what takes that back."""
        with self._lock:
            self._before_close[call] = None
        return lambda: self._before_close.pop(call, None)

    def close(self) -> None:
        """Release the backend, batchers first. A call of ``encode`` that goes on is refused."""
        for call in list(self._before_close):
            call()
        if not self._closed:
            self._closed = True
            for backend in (self._wide, self._backend):
                if backend is not None:
                    backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Encoder({self.manifest.name}, {self.choice})"

    def _encode_all(
        self,
        texts: Iterable[str],
        wish: Wish,
        batch_size: int | None,
        show_progress_bar: bool,
    ) -> Vectors:
        source, count = as_texts(texts)
        vectors = np.empty((count or 0, self.dimension), np.float32)
        first = end = 0

        def tokenize(window: list[str]) -> Tokens:
            nonlocal first
            start, first = first, first + len(window)
            return self.tokenize(window, wish, start)

        with (
            progress_bar("texts", count, show=show_progress_bar) as advance,
            closing(one_ahead(windows(source), tokenize)) as tokenized,
        ):
            for tokens in tokenized:
                start, end = end, end + len(tokens.ids)
                grow(vectors, end)
                self._execute(tokens, vectors[start:end], batch_size)
                self._require_finite(vectors[start:end], start)
                advance(end - start)
        if end < len(vectors):
            vectors.resize((end, self.dimension), refcheck=False)
        return vectors

    def _execute(self, tokens: Tokens, out: Vectors, batch_size: int | None) -> None:
        """Write the vectors of N texts into ``out`` (N, H), equal ones computed once."""
        once, rows_of = distinct(tokens)
        found = out if rows_of is None else np.empty((len(once.ids), self.dimension), np.float32)
        plan = list(plan_batches(once.lengths, self.batch_tokens, batch_size))
        if isinstance(self._backend, Streaming):
            batches = (pad(once, rows) for rows in plan)
            for rows, ready in zip(plan, self._backend.stream(batches), strict=True):
                found[rows] = ready
        else:
            execute(self._run, once, plan, found, self.workers)
        if rows_of is not None:
            np.take(found, rows_of, axis=0, out=out)

    def _checked(
        self, backend: Backend, batch: Batch, preemption: Preemption | None = None
    ) -> Vectors:
        vectors = self._run_by(backend, batch, preemption)
        self._require_finite(vectors)
        return vectors

    def _run(self, batch: Batch) -> Vectors:
        return self._run_by(self._backend, batch)

    def _run_by(
        self, backend: Backend, batch: Batch, preemption: Preemption | None = None
    ) -> Vectors:
        self.require_open()
        try:
            if preemption is None:
                return backend.run(batch)
            return cast("Sharing", backend).run(batch, preemption)
        except AttributeError:  # of what another thread has released meanwhile
            self.require_open()
            raise

    def _require_finite(self, vectors: Vectors, first: int | None = None) -> None:
        """Raise ``ParityError`` unless all values are; ``first``: position of the first text."""
        if are_finite(vectors):
            return
        wrong = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        which = (
            f"{len(wrong)} of {len(vectors)} texts" if first is None else f"text {first + wrong[0]}"
        )
        raise ParityError(
            f"the vector of {which} holds NaN or infinite values, by {self.choice}. Where a lower "
            "precision overflows, fp32 does not: --precision fp32."
        )

    def _prove(self, folder: Path, tokenizer_json: bytes, tolerance: Tolerance) -> None:
        try:
            prove(
                self._backend.run,
                self.batch_tokens,
                folder,
                self.manifest,
                tokenizer_json,
                tolerance,
                self.choice,
            )
        except BaseException:
            self.close()
            raise

    def require_open(self) -> None:
        """Raise ``CoromError`` if it was closed."""
        if self._closed:
            raise closed_encoder()

    def _note_truncated(self, count: int) -> None:
        with self._lock:
            first_time = self.truncated_texts == 0
            self.truncated_texts += count
        if first_time:
            cut_logger.warning(
                "%s longer than %d tokens and cut; this is said once. Encoder.truncated_texts "
                "(of a server: corom_truncated_texts_total) counts all that are; "
                'truncate="error" (corom serve: --no-auto-truncate) refuses them.',
                "1 text was" if count == 1 else f"{count} texts were",
                self.max_length,
            )
