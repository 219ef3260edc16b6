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
    UnavailableError,
    WorkerError,
)
from .manifest import Manifest, load_manifest
from .pipeline import SentenceEmbedding, SentenceEmbeddingPipeline, Tasks, pipeline

__all__ = [
    "BundleError",
    "CoromError",
    "Counters",
    "DeadlineExceeded",
    "DynamicBatcher",
    "Encoder",
    "InputError",
    "InputTypeError",
    "Manifest",
    "Overloaded",
    "ParityError",
    "SentenceEmbedding",
    "SentenceEmbeddingPipeline",
    "Tasks",
    "UnavailableError",
    "WorkerError",
    "load_manifest",
    "pipeline",
]
