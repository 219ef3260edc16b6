"""The seam between a job and who computes its vectors: this process, or the workers of Ray."""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from .encoder import Encoder
from .errors import InputError
from .job_source import JobSource
from .options import EncodeOptions
from .portions import Portion
from .vectors import Vectors

Advance = Callable[[int], None]
Say = Callable[[str], None]


class Described(NamedTuple):
    """What decides, beside the bundle and the texts, which vectors come out."""

    precision: str
    backend: str
    device: str
    max_length: int
    dimension: int
    batch_tokens: int

    @property
    def choice(self) -> str:
        """What executes, in words."""
        return f"{self.precision} by {self.backend} on {self.device}"


class Embedded(NamedTuple):
    """A portion and the vectors (N, H) of its texts; None where its shard was there before."""

    portion: Portion
    vectors: Vectors | None
    truncated_texts: int


class Embedder(Protocol):
    """Turns the portions of a job into vectors."""

    described: Described
    choice: str
    """What executes, in words; says what "auto" chose."""

    def embed(self, source: JobSource, advance: Advance) -> Iterator[Embedded]:
        """Yield every portion, in order, with its vectors if it has no shard yet.

        Some are read ahead at most. ``advance`` is told how many more rows are done. Raises
        ``InputError`` for a text that the options refuse.
        """
        ...


class LocalEmbedder:
    """Computes in this process, one portion after the other."""

    def __init__(self, encoder: Encoder, options: EncodeOptions) -> None:
        self._encoder, self._options = encoder, options
        self.described = describe(encoder, options)
        self.choice = encoder.choice

    def embed(self, source: JobSource, advance: Advance) -> Iterator[Embedded]:
        """Yield every portion, in order, with its vectors; no portion is read ahead."""

        def embedded(portion: Portion) -> Embedded:
            if portion.number in source.done:
                advance(portion.rows)
                return Embedded(portion, None, 0)
            return self.embed_portion(portion, advance)

        return map(embedded, source)

    def embed_portion(self, portion: Portion, advance: Advance = lambda _rows: None) -> Embedded:
        """Return one portion with its vectors."""
        cut = self._encoder.truncated_texts
        try:
            vectors = self._encoder.encode(_told(portion.texts, advance), **self._options)
        except InputError as error:
            raise InputError(f"{error} (Text 0 is {portion.begin}.)") from None
        advance(len(portion.bad))
        return Embedded(portion, vectors, self._encoder.truncated_texts - cut)


def describe(encoder: Encoder, options: EncodeOptions) -> Described:
    """Return what an encoder is; raises ``InputError`` for options that cannot be."""
    dimension = encoder.encode([], **options).shape[1]
    return Described(
        encoder.precision,
        encoder.backend_name,
        encoder.device,
        encoder.max_length,
        dimension,
        encoder.batch_tokens,
    )


def _told(texts: list[str], advance: Advance) -> Iterator[str]:
    """Yield the texts, and tell of them as they are taken."""
    for start in range(0, len(texts), 256):
        part = texts[start : start + 256]
        yield from part
        advance(len(part))
