"""Encoder: texts in, vectors out. Owns the sequence tokens → batches → backend and nothing else."""

import logging
import threading
from collections.abc import Iterable, Mapping, Set, Sized
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypedDict, Unpack

import numpy as np

from .availability import why_not_auto
from .backend import choose_backend, choose_variant, open_backend, run_batches
from .batching import Batch, pad, plan_batches
from .cpus import available_cpus
from .engine_cache import EngineCache
from .errors import CoromError, InputError, InputTypeError, ParityError
from .golden import GOLDEN_NAME, load_golden
from .manifest import checked_file, load_manifest
from .parity import row_cosines
from .progress import progress_bar
from .tokens import Tokenizer, Truncate, check_text, check_truncate
from .vectors import Vectors, normalize, shorten, similarity
from .windows import windows

logger = logging.getLogger("corom")


class EncodeOptions(TypedDict, total=False):
    """The options of ``Encoder.encode``."""

    normalize_embeddings: bool | None
    truncate_dim: int | None
    prompt: str | None
    prompt_name: str | None
    truncate: Truncate
    show_progress_bar: bool
    batch_size: int | None


class Encoder:
    """Opens a bundle and turns texts into vectors. Threads may share one encoder.

    ``backend``, ``device`` and ``precision``: "auto", or a name; a name that is not here is an
    ``UnavailableError``, never replaced by another. ``threads``: CPU threads of the backend; None
    takes the CPUs this process may use. ``max_batch_tokens``: upper bound of rows × padded length
    of one execution; a backend that is faster with less takes less. ``max_length``: tokens a text
    is cut to; None takes the manifest's. ``truncated_texts`` counts the texts cut so far.
    ``engine_cache``: "auto" builds a TensorRT engine for this machine once if none of the bundle's
    fits, and keeps it in the cache. ``cuda_graphs``: replay one captured graph a shape; None does
    so with TensorRT and not with ONNX Runtime, whose replays run one at a time.

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
        max_batch_tokens: int = 16384,
        max_length: int | None = None,
        engine_cache: EngineCache = "off",
        cuda_graphs: bool | None = None,
    ) -> None:
        folder = Path(bundle)
        self.manifest = manifest = load_manifest(folder)
        self.max_length = manifest.max_length if max_length is None else max_length
        cannot = partial(why_not_auto, folder, manifest, precision, engine_cache)
        self.backend_name, self.device = choose_backend(backend, device, cannot, precision)
        variant = choose_variant(manifest, precision, self.backend_name)
        self.precision = variant.precision
        self.truncated_texts = 0
        _positive("max_batch_tokens", max_batch_tokens)
        threads = available_cpus() if threads is None else _positive("threads", threads)
        tokenizer_json = checked_file(folder, manifest.entry("tokenizer.json")).read_bytes()
        self._tokenizer = Tokenizer(tokenizer_json, self.max_length, manifest.max_positions)
        self._backend = open_backend(
            self.backend_name,
            self.device,
            folder,
            manifest,
            variant,
            threads,
            engine_cache,
            cuda_graphs,
        )
        self._batch_tokens = min(max_batch_tokens, self._backend.batch_tokens)
        self._closed = False
        self._lock = threading.Lock()
        # Without parity it is about to be measured, by the exporter.
        rounded = self.precision in {"bf16", "int8"} and variant.parity
        if self.backend_name == "tensorrt" or rounded:
            self._prove(folder, tokenizer_json, variant.tolerance.cosine_min)
        logger.info("%s: %s", manifest.name, self.choice)

    @property
    def dimension(self) -> int:
        """Number of values of a vector."""
        return self.manifest.dimension

    @property
    def choice(self) -> str:
        """What executes, in words; says what "auto" chose."""
        return f"{self.precision} by {self.backend_name} on {self.device}"

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
        to ``max_length`` tokens and warns once, "error" refuses longer ones, False takes them whole
        up to the positions the model has. ``batch_size``: most rows of one execution.

        Raises ``InputTypeError`` for anything but text and ``InputError`` for text that cannot be
        encoded, naming its position.
        """
        if self._closed:
            raise CoromError("this encoder is closed. Open a new one: Encoder(bundle).")
        if truncate is not True:
            check_truncate(truncate)
        scale = self.manifest.normalize if normalize_embeddings is None else normalize_embeddings
        if not isinstance(scale, bool):
            raise InputTypeError(f"normalize_embeddings is {scale!r}; pass True, False or None.")
        prefix = self._prefix(prompt, prompt_name)
        size = None if batch_size is None else _positive("batch_size", batch_size)
        if isinstance(texts, str):
            vectors = self._encode_one(texts, prefix, truncate)
        else:
            vectors = self._encode_all(texts, prefix, truncate, size, show_progress_bar)
        if truncate_dim is not None:
            vectors = shorten(vectors, truncate_dim)
        if scale:
            vectors = normalize(vectors)
        return vectors[0] if isinstance(texts, str) else vectors

    def encode_query(self, texts: str | Iterable[str], **options: Unpack[EncodeOptions]) -> Vectors:
        """Encode with the manifest's prompt "query", if it has one; otherwise as ``encode``."""
        return self.encode(texts, **self._with_prompt("query", options))

    def encode_document(
        self, texts: str | Iterable[str], **options: Unpack[EncodeOptions]
    ) -> Vectors:
        """Encode with the manifest's prompt "document" or "passage", if any; else as ``encode``."""
        name = "passage" if "passage" in self.manifest.prompts else "document"
        return self.encode(texts, **self._with_prompt(name, options))

    def token_ids(self, texts: Iterable[str], *, truncate: Truncate = True) -> list[list[int]]:
        """Return the ids each text is executed as, special tokens included."""
        return self._tokenizer(list(_as_texts(texts)[0]), truncate=truncate).ids

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

    def close(self) -> None:
        """Release the backend. Calls that run in other threads must have ended."""
        if not self._closed:
            self._closed = True
            self._backend.close()

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
        prefix: str,
        truncate: Truncate,
        batch_size: int | None,
        show_progress_bar: bool,
    ) -> Vectors:
        source, count = _as_texts(texts)
        vectors = np.empty((count or 0, self.dimension), np.float32)
        end = 0
        with progress_bar("texts", count, show=show_progress_bar) as advance:
            for window in windows(source):
                start, end = end, end + len(window)
                tokens = self._tokenizer(window, prefix=prefix, truncate=truncate, first=start)
                if tokens.truncated:
                    self._note_truncated(tokens.truncated)
                _grow(vectors, end)
                out = vectors[start:end]
                plan = list(plan_batches(tokens.lengths, self._batch_tokens, batch_size))
                batches = (pad(tokens, rows) for rows in plan)
                for rows, ready in zip(plan, run_batches(self._backend, batches), strict=True):
                    out[rows] = ready
                advance(len(window))
        if end < len(vectors):
            vectors.resize((end, self.dimension), refcheck=False)
        return vectors

    def _encode_one(self, text: str, prefix: str, truncate: Truncate) -> Vectors:
        """Do what ``_encode_all`` does, without what only several texts need."""
        tokens = self._tokenizer.one(text, prefix=prefix, truncate=truncate)
        if tokens.truncated:
            self._note_truncated(tokens.truncated)
        return self._backend.run(Batch(np.array(tokens.ids, np.int64), tokens.lengths))

    def _prove(self, folder: Path, tokenizer_json: bytes, cosine_min: float) -> None:
        """Refuse what does not give the golden vectors here: a wrong kernel is silent."""
        manifest = self.manifest
        try:
            golden = load_golden(checked_file(folder, manifest.entry(GOLDEN_NAME)))
            tokens = Tokenizer(tokenizer_json, manifest.max_length, manifest.max_positions)(
                golden.texts
            )
            cosine = 1.0
            for rows in plan_batches(tokens.lengths, self._batch_tokens):
                vectors = self._backend.run(pad(tokens, rows))
                cosine = min(cosine, float(row_cosines(golden.vectors[rows], vectors).min()))
            if not cosine >= cosine_min:
                raise ParityError(
                    f"{self.choice} gives wrong vectors on this machine: cosine {cosine:.6f} to "
                    f"the golden ones, at least {cosine_min} is expected. Export the bundle again "
                    "on this machine; until then use --backend onnxruntime --precision fp32."
                )
        except BaseException:
            self.close()
            raise

    def _prefix(self, prompt: str | None, prompt_name: str | None) -> str:
        if prompt is not None:
            check_text(prompt, "prompt")
            if prompt_name is not None:
                raise InputError(f"prompt and prompt_name ('{prompt_name}') were given: pass one.")
            return prompt
        name = self.manifest.default_prompt_name if prompt_name is None else prompt_name
        if name is None:
            return ""
        if name not in self.manifest.prompts:
            names = ", ".join(self.manifest.prompts) or "none"
            raise InputError(f"there is no prompt '{name}'. This bundle's prompts: {names}.")
        return self.manifest.prompts[name]

    def _with_prompt(self, name: str, options: EncodeOptions) -> EncodeOptions:
        chosen = options.get("prompt") is not None or options.get("prompt_name") is not None
        if not chosen and name in self.manifest.prompts:
            options["prompt_name"] = name
        return options

    def _note_truncated(self, count: int) -> None:
        with self._lock:
            first_time = self.truncated_texts == 0
            self.truncated_texts += count
        if first_time:
            logger.warning(
                "%d texts were longer than %d tokens and were cut; this is said once. "
                'Encoder.truncated_texts counts them, truncate="error" refuses them.',
                count,
                self.max_length,
            )


def _as_texts(texts: Iterable[str]) -> tuple[Iterable[str], int | None]:
    """Return the texts and their number, None where it is not known before the end."""
    refused = isinstance(texts, bytes | bytearray | Mapping | Set)
    # An array without dimensions has an __iter__ that only fails.
    if refused or not isinstance(texts, Iterable) or getattr(texts, "ndim", 1) == 0:
        raise InputTypeError(
            f"the input is {type(texts).__name__}; pass one str, or a list or generator of str."
        )
    return texts, len(texts) if isinstance(texts, Sized) else None


def _grow(vectors: Vectors, rows: int) -> None:
    """Make room for at least ``rows`` rows, in place, at least doubling what was there."""
    if rows > len(vectors):
        vectors.resize((max(rows, 2 * len(vectors)), vectors.shape[1]), refcheck=False)


def _positive(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputTypeError(f"{name} is {value!r}; pass a whole number of at least 1.")
    if value < 1:
        raise InputError(f"{name} is {value}; it must be at least 1.")
    return value
