"""What a caller may ask of a text's vector, checked before anything is computed."""

from collections.abc import Iterable, Mapping, Set, Sized
from typing import NamedTuple, TypedDict, TypeVar

from .errors import InputError, InputTypeError
from .manifest import Manifest
from .tokens import Truncate, check_text, check_truncate
from .vectors import Vectors, check_dimension, normalize, shorten

Item = TypeVar("Item")
MOST_CPUS = 4096
"""No more threads are begun: an operating system that is asked for them says only that it failed.
"""
PASSAGE_PROMPTS = ("document", "passage", "corpus")
"""Names of the prompt of passages; the first that there is, as in sentence-transformers."""


class TextOptions(TypedDict, total=False):
    """What may be asked of each text; see ``Encoder.encode``."""

    normalize_embeddings: bool | None
    truncate_dim: int | None
    prompt: str | None
    prompt_name: str | None
    truncate: Truncate


class EncodeOptions(TextOptions, total=False):
    """The options of ``Encoder.encode``."""

    show_progress_bar: bool
    batch_size: int | None


class Wish(NamedTuple):
    """Checked options: what is done to a text before it is executed, and to its vector after."""

    prefix: str
    truncate: Truncate
    dimension: int
    """Values kept of a vector."""
    scale: bool

    def finish(self, vectors: Vectors) -> Vectors:
        """Return un-normalized (N, H) as they were asked for, (N, dimension)."""
        if self.dimension < vectors.shape[1]:
            vectors = shorten(vectors, self.dimension)
        return normalize(vectors) if self.scale else vectors


def check_options(
    manifest: Manifest,
    *,
    normalize_embeddings: bool | None = None,
    truncate_dim: int | None = None,
    prompt: str | None = None,
    prompt_name: str | None = None,
    truncate: Truncate = True,
) -> Wish:
    """Return the options of ``Encoder.encode`` with the manifest's word where there is no other.

    Raises ``InputError`` for one that cannot be.
    """
    if truncate is not True:
        check_truncate(truncate)
    scale = manifest.normalize if normalize_embeddings is None else normalize_embeddings
    if not isinstance(scale, bool):
        raise InputTypeError(f"normalize_embeddings is {scale!r}; pass True, False or None.")
    prefix = _prefix(manifest, prompt, prompt_name)
    dimension = manifest.dimension
    if truncate_dim is not None:
        check_dimension(truncate_dim, dimension)
        dimension = truncate_dim
    return Wish(prefix, truncate, dimension, scale)


def _prefix(manifest: Manifest, prompt: str | None, prompt_name: str | None) -> str:
    if prompt is not None:
        check_text(prompt, "prompt")
        if prompt_name is not None:
            raise InputError(f"prompt and prompt_name ('{prompt_name}') were given: pass one.")
        return prompt
    if prompt_name is not None:
        check_text(prompt_name, "prompt_name")
    name = manifest.default_prompt_name if prompt_name is None else prompt_name
    if name is None:
        return ""
    if name not in manifest.prompts:
        names = ", ".join(manifest.prompts) or "none"
        raise InputError(f"there is no prompt '{name}'. This bundle's prompts: {names}.")
    return manifest.prompts[name]


def with_prompt(name: str, prompts: Mapping[str, str], options: EncodeOptions) -> EncodeOptions:
    """Return the options with the prompt of this name, if there is one and none was chosen."""
    chosen = options.get("prompt") is not None or options.get("prompt_name") is not None
    if not chosen and name in prompts:
        options["prompt_name"] = name
    return options


def with_document_prompt(prompts: Mapping[str, str], options: EncodeOptions) -> EncodeOptions:
    """Return the options with the prompt of passages, as ``with_prompt`` does."""
    return with_prompt(passage_prompt(prompts), prompts, options)


def passage_prompt(prompts: Mapping[str, str]) -> str:
    """Return the name of the prompt of passages, whether there is one or not."""
    return next((name for name in PASSAGE_PROMPTS if name in prompts), PASSAGE_PROMPTS[0])


def as_texts(texts: Iterable[Item]) -> tuple[Iterable[Item], int | None]:
    """Return the texts and their number, None where it is not known before the end.

    Raises ``InputTypeError`` for what is no series of texts.
    """
    refused = isinstance(texts, bytes | bytearray | Mapping | Set)
    # An array without dimensions has an __iter__ that only fails.
    if refused or not isinstance(texts, Iterable) or getattr(texts, "ndim", 1) == 0:
        raise InputTypeError(
            f"the input is {type(texts).__name__}; pass one str, or a list or generator of str."
        )
    return texts, len(texts) if isinstance(texts, Sized) else None


def cpu_count(name: str, value: int) -> int:
    """Return a number of threads or executions; raises ``InputError`` for one no machine has."""
    if positive(name, value) > MOST_CPUS:
        raise InputError(f"{name} is {value}; it can be {MOST_CPUS} at most.")
    return value


def positive(name: str, value: int) -> int:
    """Return ``value``; raises ``InputError`` unless it is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputTypeError(f"{name} is {value!r}; pass a whole number of at least 1.")
    if value < 1:
        raise InputError(f"{name} is {value}; it must be at least 1.")
    return value


def not_negative(name: str, value: float) -> float:
    """Return ``value``; raises ``InputError`` unless it is a finite number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputTypeError(f"{name} is {value!r}; pass a number of at least 0.")
    if not 0 <= value < float("inf"):
        raise InputError(f"{name} is {value}; it must be at least 0, and finite.")
    return value
