"""MapBatches: the same vectors in whatever engine runs it, and clear errors for what is no text."""

import importlib.util
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pytest

from corom.runtime import BundleError, Encoder, InputError, InputTypeError, MapBatches

TEXTS = ["头痛怎么办", "", "CT 12 mg", "上消化道出血手术大约多久", "🤒", "头痛怎么办"]


def needs(*packages: str) -> Any:
    """Skip a test where a package is missing."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(
        bool(missing), reason=f"not installed; run: pip install {' '.join(packages)}"
    )


@pytest.fixture(scope="module")
def vectors(tiny_bundle: Path) -> np.ndarray:
    """The vectors of ``TEXTS``, from the encoder itself."""
    with Encoder(tiny_bundle) as encoder:
        return encoder.encode(TEXTS)


@pytest.fixture(scope="module")
def add(tiny_bundle: Path) -> MapBatches:
    return MapBatches(tiny_bundle, text_column="body", threads=1)


@pytest.fixture
def script(tmp_path: Path, tiny_bundle: Path) -> Callable[..., Any]:
    """Return the function that runs a program in a process of its own; its last line is JSON."""

    def run(program: str, **environment: str) -> Any:
        file = tmp_path / "program.py"
        start = f"BUNDLE, TEXTS = {str(tiny_bundle)!r}, {TEXTS!r}\n"
        file.write_text(start + program, "utf-8")
        kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
        done = subprocess.run(
            [sys.executable, file],
            capture_output=True,
            encoding="utf-8",
            check=False,
            env=kept | environment,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


# --- Batches of every kind


def test_a_dict_of_lists(add: MapBatches, vectors: np.ndarray) -> None:
    batch = {"body": TEXTS, "n": list(range(6))}
    done = add(batch)
    assert list(batch) == ["body", "n"]
    assert list(done) == ["body", "n", "embedding"]
    assert isinstance(done["embedding"], list)
    np.testing.assert_allclose(np.stack(done["embedding"]), vectors, atol=1e-5)


@pytest.mark.parametrize("dtype", [object, str])
def test_a_dict_of_arrays(add: MapBatches, vectors: np.ndarray, dtype: type) -> None:
    done = add({"body": np.array(TEXTS, dtype), "n": np.arange(6)})
    assert done["embedding"].dtype == np.float32
    np.testing.assert_allclose(done["embedding"], vectors, atol=1e-5)


@pytest.mark.parametrize("kind", [arrow.Table, arrow.RecordBatch])
def test_arrow(add: MapBatches, vectors: np.ndarray, kind: Any) -> None:
    done = add(kind.from_pydict({"body": TEXTS, "n": list(range(6))}))
    assert type(done) is kind
    assert done.schema.names == ["body", "n", "embedding"]
    assert done.schema.field("embedding").type == arrow.list_(arrow.float32(), 48)
    np.testing.assert_allclose(done["embedding"].to_pylist(), vectors, atol=1e-5)


@needs("pandas")
def test_pandas(add: MapBatches, vectors: np.ndarray) -> None:
    import pandas

    for dtype in (object, "string", "category"):
        texts = pandas.Series(TEXTS, index=range(10, 16), dtype=dtype)
        frame = pandas.DataFrame({"body": texts})
        done = add(frame)
        assert list(frame.columns) == ["body"]
        assert list(done.index) == list(range(10, 16))
        np.testing.assert_allclose(np.stack(done["embedding"]), vectors, atol=1e-5)


def test_an_iterator_gives_an_iterator(add: MapBatches, vectors: np.ndarray) -> None:
    taken = 0

    def batches() -> Any:
        nonlocal taken
        for start in range(0, 6, 2):
            taken += 1
            yield {"body": TEXTS[start : start + 2]}

    done = add(batches())
    first = next(done)
    assert taken == 1
    rows = [*first["embedding"], *(row for batch in done for row in batch["embedding"])]
    np.testing.assert_allclose(np.stack(rows), vectors, atol=1e-5)


def test_a_batch_without_rows(add: MapBatches) -> None:
    assert add({"body": []})["embedding"] == []
    assert add({"body": np.array([], object)})["embedding"].shape == (0, 48)
    assert add(arrow.table({"body": arrow.array([], arrow.string())})).num_rows == 0


def test_options_go_to_the_encoder(tiny_mean_bundle: Path) -> None:
    add = MapBatches(
        tiny_mean_bundle,
        output_column="v",
        threads=1,
        max_length=16,
        prompt_name="query",
        truncate_dim=8,
        normalize_embeddings=False,
    )
    with Encoder(tiny_mean_bundle, max_length=16) as encoder:
        expected = encoder.encode_query(TEXTS, truncate_dim=8, normalize_embeddings=False)
    np.testing.assert_allclose(np.stack(add({"text": TEXTS})["v"]), expected, atol=1e-5)


# --- Processes


def test_it_pickles_as_text_and_two_copies_share_an_encoder(
    add: MapBatches, vectors: np.ndarray
) -> None:
    add({"body": TEXTS})
    pickled = pickle.dumps(add)
    assert len(pickled) < 1000
    copy = pickle.loads(pickled)
    np.testing.assert_allclose(np.stack(copy({"body": TEXTS})["embedding"]), vectors, atol=1e-5)
    assert copy._late.encoder() is add._late.encoder()


def test_a_forked_process_opens_its_own(script: Callable[..., Any], vectors: np.ndarray) -> None:
    program = """
import json, multiprocessing
from corom.runtime import MapBatches

add = MapBatches(BUNDLE, threads=1)

def work(texts):
    return [vector.tolist() for vector in add({"text": texts})["embedding"]]

here = work(TEXTS)
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(json.dumps([here, *pool.map(work, [TEXTS, TEXTS])]))
"""
    for rows in script(program):
        np.testing.assert_allclose(rows, vectors, atol=1e-5)


def test_another_bundle_at_the_same_path_is_refused(altered: Path, tiny_mean_bundle: Path) -> None:
    add = MapBatches(altered)
    shutil.rmtree(altered)
    shutil.copytree(tiny_mean_bundle, altered)
    with pytest.raises(BundleError, match="not the same bundle here"):
        add({"text": TEXTS})
    shutil.rmtree(altered)
    with pytest.raises(BundleError, match="there is no"):
        add({"text": TEXTS})


# --- What cannot be used


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ({"text": ["好"], "n": [1]}, "no column 'body'; it has: text, n. Name one with text_col"),
        ({}, "no column 'body'; it has: none"),
        ({"body": ["好"], "embedding": [1]}, "has a column 'embedding' already"),
        ({"body": ["好", None]}, "row 1 of column 'body' is null"),
        ({"body": np.array(["好", np.nan], object)}, "row 1 of column 'body' is null"),
        (arrow.table({"body": ["好", "好", None]}), "row 2 of column 'body' is null"),
        ({"body": ["好", b"a"]}, "row 1 of column 'body' is bytes, not str. Decode it"),
        (arrow.table({"body": [1, 2]}), "row 0 of column 'body' is int, not str"),
        ({"body": ["好", "\ud800"]}, "text 1 holds a lone surrogate"),
        ({"body": "好"}, "is one text, not a batch of them"),
        (["好"], "the batch is list; it must be a dict of lists"),
    ],
)
def test_bad_batches(add: MapBatches, batch: Any, said: str) -> None:
    with pytest.raises(InputError) as raised:
        add(batch)
    assert said in str(raised.value)


@needs("pandas")
def test_null_of_pandas(add: MapBatches) -> None:
    import pandas

    for dtype in (object, "string"):
        with pytest.raises(InputTypeError, match="row 1 of column 'body' is null"):
            add(pandas.DataFrame({"body": pandas.Series(["好", None], dtype=dtype)}))


def test_a_text_that_is_too_long(tiny_bundle: Path) -> None:
    add = MapBatches(tiny_bundle, truncate="error", threads=1)
    with pytest.raises(InputError, match=r"text 1 has .*Text 0 is row 0 of column 'text'"):
        add({"text": ["好", "好" * 200]})


def test_what_cannot_be_opened_is_refused_at_once(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        MapBatches(tmp_path)
    with pytest.raises(InputTypeError, match="there is no option 'thread'"):
        MapBatches(tiny_bundle, thread=1)


# --- The engines themselves


@needs("datasets")
@pytest.mark.parametrize("processes", [None, 2])
def test_hugging_face_datasets(
    script: Callable[..., Any], vectors: np.ndarray, tmp_path: Path, processes: int | None
) -> None:
    program = f"""
import json, datasets
from corom.runtime import MapBatches

add = MapBatches(BUNDLE, threads=1)
rows = datasets.Dataset.from_dict({{"text": TEXTS, "n": list(range(6))}})
done = rows.map(add, batched=True, batch_size=2, num_proc={processes})
again = rows.map(MapBatches(BUNDLE, threads=1), batched=True, batch_size=2)
assert done.features["embedding"].feature.dtype == "float32", done.features
assert done._fingerprint == again._fingerprint or {processes}, "the cache does not know it again"
print(json.dumps([done["n"][:], done["embedding"][:]]))
"""
    numbers, rows = script(program, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert numbers == list(range(6))
    np.testing.assert_allclose(rows, vectors, atol=1e-5)


@needs("ray", "pandas")
@pytest.mark.parametrize("way", ["class", "object"])
@pytest.mark.slow
def test_ray_data(script: Callable[..., Any], vectors: np.ndarray, way: str) -> None:
    program = f"""
import json, logging, warnings, ray
from corom.runtime import MapBatches

ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
ray.data.DataContext.get_current().enable_progress_bars = False
rows = ray.data.from_items([{{"n": n, "text": text}} for n, text in enumerate(TEXTS)])
if {way!r} == "class":
    arguments = {{"bundle": BUNDLE, "threads": 1}}
    done = rows.map_batches(MapBatches, fn_constructor_kwargs=arguments, concurrency=1)
else:
    add = MapBatches(BUNDLE, threads=1)
    done = rows.map_batches(add, batch_format="pyarrow")
found = sorted(done.take_all(), key=lambda row: row["n"])
vectors = [list(map(float, row["embedding"])) for row in found]
print(json.dumps([[row["n"] for row in found], vectors]))
"""
    numbers, rows = script(program, RAY_USAGE_STATS_ENABLED="0")
    assert numbers == list(range(6))
    np.testing.assert_allclose(rows, vectors, atol=1e-5)


@needs("pyspark", "pandas")
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java")
def test_spark(script: Callable[..., Any], vectors: np.ndarray) -> None:
    program = """
import json
from pyspark.sql import SparkSession
from corom.runtime import MapBatches

spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
rows = spark.createDataFrame(list(enumerate(TEXTS)), "n long, text string").repartition(2)
schema = "n long, text string, embedding array<float>"
found = rows.mapInPandas(MapBatches(BUNDLE, threads=1), schema).orderBy("n").collect()
print(json.dumps([[row.n for row in found], [row.embedding for row in found]]))
"""
    numbers, rows = script(program, PYSPARK_PYTHON=sys.executable)
    assert numbers == list(range(6))
    np.testing.assert_allclose(rows, vectors, atol=1e-5)
