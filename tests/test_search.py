"""Search: the nearest passages, by brute force and by the command; other people's readers too."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corom.runtime import BundleError, Encoder, InputError, VectorIndex, search
from corom.runtime import vector_index as module
from corom.runtime.vector_index import top_k

Corom = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def index(
    tmp_path_factory: pytest.TempPathFactory,
    corom: Corom,
    tiny_bundle: Path,
    parity_texts: list[str],
) -> Path:
    """The parity texts in shards of 100."""
    folder = tmp_path_factory.mktemp("index")
    lines = [f"p{n}\t{text}\n".replace("\t\t", "\t") for n, text in enumerate(parity_texts)]
    (folder / "texts.tsv").write_text("".join(lines), "utf-8")
    options = ("--text-column", "2", "--id-column", "1", "--shard-rows", "100")
    done = corom("embed", tiny_bundle, "-i", folder / "texts.tsv", "-o", folder / "v", *options)
    assert done.returncode == 0, done.stderr
    return folder / "v"


@given(
    st.integers(1, 40), st.integers(0, 60), st.integers(1, 70), st.integers(0, 2**32 - 1),
    st.integers(1, 16), st.integers(1, 16),
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_the_best_of_any_size_in_any_blocks(
    queries: int, passages: int, k: int, seed: int, query_block: int, passage_block: int
) -> None:
    chance = np.random.default_rng(seed)
    left = chance.integers(-3, 4, (queries, 5)).astype(np.float32)  # many ties
    right = chance.integers(-3, 4, (passages, 5)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "QUERY_BLOCK", query_block)
        patch.setattr(module, "PASSAGE_BLOCK", passage_block)
        scores, places = top_k(left, right, k)
    products = left @ right.T
    expected = np.argsort(-products, axis=1, kind="stable")[:, :k]
    assert np.array_equal(places, expected)
    assert np.array_equal(scores, np.take_along_axis(products, expected, 1))


def test_a_text_finds_itself(index: Path, tiny_bundle: Path, parity_texts: list[str]) -> None:
    with Encoder(tiny_bundle) as encoder:
        vectors = encoder.encode(parity_texts)
    opened = VectorIndex(index)
    assert opened.vectors.shape == (len(parity_texts), 48)
    scores = vectors @ vectors.T
    for row, hits in enumerate(search(opened, vectors, 5)):
        assert len(hits) == 5
        assert [hit.score for hit in hits] == sorted([hit.score for hit in hits], reverse=True)
        assert hits[0].score == pytest.approx(scores[row].max(), rel=1e-4)
        assert f"p{scores[row].argmax()}" in [hit.id for hit in hits[:2]]


def test_cosine_where_the_manifest_says_so(
    corom: Corom, tiny_mean_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "t.txt").write_text("头痛怎么办\n今天天气不错\n发烧\n", "utf-8")
    options = ("--no-normalize", "-o", tmp_path / "v")
    assert corom("embed", tiny_mean_bundle, "-i", tmp_path / "t.txt", *options).returncode == 0
    with Encoder(tiny_mean_bundle) as encoder:
        vector = 7 * encoder.encode("今天天气不错")
    (hits,) = search(tmp_path / "v", vector, 10)
    assert [hit.id for hit in hits][0] == 1
    assert hits[0].score == pytest.approx(1.0, abs=1e-5)
    assert len(hits) == 3


def test_faiss_finds_the_same(index: Path) -> None:
    pytest.importorskip("faiss", reason="faiss-cpu is not installed")
    opened = VectorIndex(index)
    exact = search(opened, opened.vectors[:20], 7)
    flat = search(opened, opened.vectors[:20], 7, method="faiss")
    for one, other in zip(exact, flat, strict=True):
        np.testing.assert_allclose([h.score for h in one], [h.score for h in other], rtol=1e-5)
    near = search(opened, opened.vectors[:20], 7, method="faiss:HNSW16")
    assert [len(hits) for hits in near] == [7] * 20
    with pytest.raises(InputError, match="faiss cannot make an index 'nothing'"):
        search(opened, opened.vectors[:1], method="faiss:nothing")


def test_what_cannot_be_searched(index: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a folder of vectors, or its job was not finished"):
        VectorIndex(tmp_path)
    with pytest.raises(InputError, match=r"shape \(1, 3\); expected \(Q, 48\)"):
        search(index, np.zeros(3, np.float32))
    queries = np.zeros((3, 48), np.float32)
    queries[1, 7] = np.nan
    with pytest.raises(InputError, match="query 1 holds NaN or infinity"):
        search(index, queries)
    with pytest.raises(InputError, match="k is 0"):
        search(index, np.zeros(48, np.float32), 0)
    with pytest.raises(InputError, match="no method 'annoy'. Methods: exact, faiss"):
        search(index, np.zeros(48, np.float32), method="annoy")
    copy = Path(shutil.copytree(index, tmp_path / "copy"))
    (copy / "part-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(BundleError, match="missing or was altered"):
        VectorIndex(copy)
    manifest = json.loads((copy / "_manifest.json").read_bytes())
    (copy / "_manifest.json").write_text(json.dumps(manifest | {"rows": manifest["rows"] + 1}))
    with pytest.raises(BundleError, match="rows, its shards"):
        VectorIndex(copy)


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc: run it on Linux")
def test_opening_starts_no_thread(index: Path) -> None:
    # One that still lets go of Python's bytes when the interpreter ends aborts the process.
    program = """if True:
        import os, sys
        import pyarrow.parquet
        from corom.runtime import VectorIndex
        before = set(os.listdir("/proc/self/task"))
        VectorIndex(sys.argv[1])
        print(len(set(os.listdir("/proc/self/task")) - before))
        """
    command = [sys.executable, "-c", program, str(index)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "0\n"


def test_the_command_prints_hits(index: Path, corom: Corom, parity_texts: list[str]) -> None:
    done = corom("search", index, parity_texts[3], "头痛", "-k", "3", "--json")
    assert done.returncode == 0, done.stderr
    records = json.loads(done.stdout)
    assert [record["query"] for record in records] == [parity_texts[3], "头痛"]
    assert [len(record["hits"]) for record in records] == [3, 3]
    shown = corom("search", index, "头痛", "-k", "2").stdout.splitlines()
    assert shown[0] == "头痛"
    assert [line.split()[0] for line in shown[1:]] == ["1", "2"]
    assert shown[1].split()[2] == records[1]["hits"][0]["id"]


def test_another_bundle_is_refused(
    index: Path, corom: Corom, tiny_mean_bundle: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    done = corom("search", index, "头痛", "--bundle", tiny_mean_bundle)
    assert done.returncode == 2
    assert "not the bundle that these vectors were made with (tiny)" in done.stderr
    copy = Path(shutil.copytree(index, tmp_path / "copy"))
    manifest = json.loads((copy / "_manifest.json").read_bytes())
    manifest["job"]["bundle_path"] = "/nowhere/tiny"
    (copy / "_manifest.json").write_text(json.dumps(manifest), "utf-8")
    done = corom("search", copy, "头痛")
    assert done.returncode == 2
    assert "no longer at '/nowhere/tiny'. Say where it is: --bundle" in done.stderr
    assert corom("search", copy, "头痛", "--bundle", tiny_bundle).returncode == 0


def test_others_read_the_shards_as_they_are(index: Path) -> None:
    table = pyarrow.parquet.read_table(index)
    assert str(table.schema.field("embedding").type) == "fixed_size_list<element: float>[48]"
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.read_parquet(sorted(index.glob("*.parquet"))[0])
    assert frame["embedding"].iloc[0].shape == (48,)
    duckdb = pytest.importorskip("duckdb", reason="duckdb is not installed")
    rows = duckdb.sql(f"select count(*), any_value(len(embedding)) from '{index}/*.parquet'")
    assert rows.fetchall() == [(table.num_rows, 48)]
