"""corom's runtime: opens a bundle and turns text into vectors. Loads no torch."""

from .batcher import DynamicBatcher
from .counters import Counters
from .encoder import Encoder
from .errors import (
    BundleError,
    CoromError,
    DeadlineExceeded,
    InputError,
    InputTypeError,
    Overloaded,
    ParityError,
    TextTooLong,
    UnavailableError,
    WorkerError,
)
from .manifest import Manifest, load_manifest
from .map_batches import MapBatches
from .pipeline import SentenceEmbedding, SentenceEmbeddingPipeline, Tasks, pipeline
from .vector_index import Hit, VectorIndex, search

__all__ = [
    "BundleError",
    "CoromError",
    "Counters",
    "DeadlineExceeded",
    "DynamicBatcher",
    "Encoder",
    "Hit",
    "InputError",
    "InputTypeError",
    "Manifest",
    "MapBatches",
    "Overloaded",
    "ParityError",
    "SentenceEmbedding",
    "SentenceEmbeddingPipeline",
    "Tasks",
    "TextTooLong",
    "UnavailableError",
    "VectorIndex",
    "WorkerError",
    "load_manifest",
    "pipeline",
    "search",
]
