"""The figures of one bundle on a GPU: every road at every load, and the stages of its engine."""

from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from corom.runtime.cuda import Device, open_device
from corom.runtime.engine import Engine
from corom.runtime.engine_cache import find_engine
from corom.runtime.engine_onnxruntime import OnnxRuntimeEngine
from corom.runtime.engine_tensorrt import TensorRTEngine
from corom.runtime.errors import CoromError
from corom.runtime.gpu_machine import this_machine
from corom.runtime.graph_interface import FUSED_GRAPH
from corom.runtime.manifest import checked_file, load_manifest
from corom.runtime.tokens import Tokenizer

from .figures import latency
from .gpu_measure import interleaved, stages, text_latencies, throughput, tokenize_rate
from .gpu_roads import ON_GPU, open_roads, tokenizer_of
from .texts import shipped_texts

ROWS, WIDTHS = (1, 8, 32), (16, 128)
THROUGHPUT_TEXTS = 20_000
BATCH_TOKENS = 16_384


def measured(bundle: Path, checkpoint: Path | None, rounds: int) -> dict[str, Any]:
    """Return latency, throughput of every road, and the stages of the engine."""
    tokenizer = tokenizer_of(bundle, load_manifest(bundle))
    texts = different_texts(THROUGHPUT_TEXTS)
    result: dict[str, Any] = {"latency": {}, "throughput": {}}
    with open_roads(bundle, checkpoint) as roads:
        absent = {road.name: {"missing": road.missing} for road in roads if road.missing}
        for rows in ROWS:
            for width in WIDTHS:
                load = texts_of(rows, width)
                found = text_latencies(roads, tokenizer, load, rounds)
                figures = {name: latency._asdict() for name, latency in found.items()}
                result["latency"][f"{rows} texts of {width} tokens"] = figures | absent
        for road in roads:
            missing = road.missing or (road.compiles and "it compiles every shape anew")
            result["throughput"][road.name] = (
                f"missing: {missing}"
                if missing
                else throughput(road, tokenizer, texts, BATCH_TOKENS)
            )
    result["throughput"]["tokenizing alone"] = tokenize_rate(tokenizer, texts)
    result["stages"] = {
        backend: engine_stages(bundle, tokenizer, rounds, backend) for backend in ON_GPU
    }
    return result


def different_texts(count: int) -> list[str]:
    """Return so many texts of the shipped ones' lengths, which all differ.

    ``Encoder`` encodes equal ones once, which would be no measure. Each time through the
    shipped texts, their last character is another one.
    """
    shipped = shipped_texts()
    last = map(chr, range(0x4E00, 0x9FFF))
    return [
        text[:-1] + other for other in islice(last, -(-count // len(shipped))) for text in shipped
    ][:count]


def texts_of(rows: int, width: int) -> list[str]:
    """Return Chinese texts of ``width`` tokens each, special tokens included, all different."""
    letters = "".join(c for text in shipped_texts() for c in text if "\u4e00" <= c <= "\u9fff")
    size = width - 2
    return [letters[at * size : (at + 1) * size] for at in range(rows)]


def engine_stages(bundle: Path, tokenizer: Tokenizer, rounds: int, backend: str) -> dict[str, Any]:
    """Return where the time of one execution goes, microseconds, for each load."""
    try:
        device = open_device()
    except CoromError as error:
        return {"missing": str(error)}
    try:
        engine = open_engine(bundle, device, backend)
        result = {}
        for rows in ROWS:
            for width in WIDTHS:
                texts = texts_of(rows, width)
                found = stages(device, engine, rows, width, rounds)
                tokenizing = interleaved({"tokenize": partial(tokenizer, texts)}, rounds)
                found["tokenize_us"] = latency(tokenizing["tokenize"]).p50_us
                result[f"{rows} texts of {width} tokens"] = found
        with device.use():
            engine.close()
    except CoromError as error:
        return {"missing": str(error)}
    finally:
        device.close()
    return result


def open_engine(bundle: Path, device: Device, backend: str) -> Engine:
    """Open what the lanes of a backend execute."""
    manifest = load_manifest(bundle)
    if backend == "tensorrt":
        path, sidecar = find_engine(bundle, manifest, "fp16", this_machine())
        return TensorRTEngine(path, sidecar, device)
    graph = checked_file(bundle, manifest.entry(FUSED_GRAPH))
    return OnnxRuntimeEngine(graph, manifest.dimension, manifest.max_positions)
