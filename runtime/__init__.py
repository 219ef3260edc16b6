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
from .map_batches import MapBatches
from .pipeline import SentenceEmbedding, SentenceEmbeddingPipeline, Tasks, pipeline

__all__ = [
    "BundleError",
    "CoromError",
    "Encoder",
    "InputError",
    "InputTypeError",
    "Manifest",
    "MapBatches",
    "ParityError",
    "SentenceEmbedding",
    "SentenceEmbeddingPipeline",
    "Tasks",
    "UnavailableError",
    "load_manifest",
    "pipeline",
]
