"""corom's runtime: opens a bundle and turns text into vectors. Loads no torch."""

from .encoder import Encoder
from .errors import (
    BundleError,
    CoromError,
    InputError,
    InputTypeError,
    ParityError,
    UnavailableError,
)
from .manifest import Manifest, load_manifest
from .pipeline import SentenceEmbedding, SentenceEmbeddingPipeline, Tasks, pipeline
from .vector_index import Hit, VectorIndex, search

__all__ = [
    "BundleError",
    "CoromError",
    "Encoder",
    "Hit",
    "InputError",
    "InputTypeError",
    "Manifest",
    "ParityError",
    "SentenceEmbedding",
    "SentenceEmbeddingPipeline",
    "Tasks",
    "UnavailableError",
    "VectorIndex",
    "load_manifest",
    "pipeline",
    "search",
]
