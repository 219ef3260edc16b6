"""Hard negatives: from the asked ranks, never a positive, the same for the same seed."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corom.runtime import InputError, VectorIndex
from corom.runtime.mining import MiningOptions, mine
from corom.runtime.qrels import read_qrels

Corom = Callable[..., subprocess.CompletedProcess[str]]

CORPUS = {
    "d1": "头痛可以吃布洛芬",
    "d2": "头痛的原因有很多",
    "d3": "发烧要多喝水",
    "d4": "今天天气不错",
    "d5": "胃痛应当少吃辛辣",
    "d6": "发烧三十九度要去医院",
}
QUERIES = {"q1": "头痛怎么办", "q2": "发烧怎么办", "q3": "没有答案的问题"}
QRELS = "q1\t0\td1\t1\nq2 0 d3 1\nq2 0 d6 2\nq1 0 d4 0\n\n"


def write(path: Path, rows: dict[str, str]) -> Path:
    path.write_text("".join(f"{key}\t{text}\n" for key, text in rows.items()), "utf-8")
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, corom: Corom, tiny_bundle: Path) -> Path:
    """A folder with corpus.tsv, queries.tsv, qrels.tsv and the vectors of the corpus, ``v``."""
    folder = tmp_path_factory.mktemp("mine")
    write(folder / "corpus.tsv", CORPUS)
    write(folder / "queries.tsv", QUERIES)
    (folder / "qrels.tsv").write_text(QRELS, "utf-8")
    options = ("--text-column", "2", "--id-column", "1")
    done = corom("embed", tiny_bundle, "-i", folder / "corpus.tsv", "-o", folder / "v", *options)
    assert done.returncode == 0, done.stderr
    return folder


def run(corom: Corom, place: Path, out: Path, *options: object, **files: Path) -> str:
    paths = {name: place / f"{name}.tsv" for name in ("corpus", "queries", "qrels")} | files
    given = [part for name, path in paths.items() for part in (f"--{name}", path)]
    done = corom("mine", place / "v", *given, "-o", out, *options)
    assert done.returncode == (2 if done.stderr.count("Error: ") else 0), done.stderr
    return done.stderr


def records(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_judgements_of_every_form(tmp_path: Path) -> None:
    path = tmp_path / "qrels"
    path.write_text(QRELS, "utf-8")
    assert read_qrels(path) == {"q1": ["d1"], "q2": ["d3", "d6"]}
    path.write_text("q1 d1\nq1\td2\t0\nq2 d3 1\nq3 d1 0\n", "utf-8")
    assert read_qrels(path) == {"q1": ["d1"], "q2": ["d3"], "q3": []}
    for content in ("q1 0 d1 yes\n", "q1\n", "q1 0 d1 1 5\n"):
        path.write_text(content, "utf-8")
        with pytest.raises(InputError, match="line 1 of .* is no judgement"):
            read_qrels(path)
    path.write_text("\n", "utf-8")
    with pytest.raises(InputError, match="has no judgement"):
        read_qrels(path)
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_qrels(tmp_path / "absent")


def test_what_trainers_read(corom: Corom, place: Path, tmp_path: Path) -> None:
    said = run(corom, place, tmp_path / "t.jsonl", "--negatives", "4")
    assert "1 queries have no relevant passage and 0 no negative: left out. 0 have fewer" in said
    lines = records(tmp_path / "t.jsonl")
    assert [line["query"] for line in lines] == [QUERIES["q1"], QUERIES["q2"]]
    for line, positives in zip(lines, (["d1"], ["d3", "d6"]), strict=True):
        found = [passage["docid"] for passage in line["negative_passages"]]  # type: ignore[attr-defined]
        assert [passage["docid"] for passage in line["positive_passages"]] == positives  # type: ignore[attr-defined]
        assert len(found) == 4
        assert set(found) == set(found) - set(positives)
    # ModelScope's trainer joins the fields that its configuration names, here the text alone.
    passages = [" ".join([p[key] for key in ["text"]]) for p in lines[0]["negative_passages"]]  # type: ignore[attr-defined]
    assert set(passages) <= set(CORPUS.values())
    # sentence-transformers' trainer takes columns: anchor, positive, negative_1, negative_2, …
    rows = [
        [line["query"], positive["text"], *(n["text"] for n in line["negative_passages"])]  # type: ignore[attr-defined]
        for line in lines
        for positive in line["positive_passages"]  # type: ignore[attr-defined]
    ]
    assert [len(row) for row in rows] == [6, 6, 6]
    assert all(isinstance(text, str) for row in rows for text in row)


def test_the_same_seed_chooses_the_same(corom: Corom, place: Path, tmp_path: Path) -> None:
    names = ("a", "b", "c", "d", "e")
    for name, seed in zip(names, (7, 7, 8, 9, 10), strict=True):
        run(corom, place, tmp_path / name, "--negatives", "2", "--seed", seed)
    contents = [(tmp_path / name).read_bytes() for name in names]
    assert contents[0] == contents[1]
    assert len(set(contents)) > 1


@given(
    st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 8), st.integers(0, 8),
    st.none() | st.floats(-1, 3),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_negatives_by_brute_force(
    seed: int, count: int, first: int, more: int, margin: float | None
) -> None:
    chance = np.random.default_rng(seed)
    index = VectorIndex.__new__(VectorIndex)  # its vectors, without the files
    index.vectors = chance.standard_normal((12, 4)).astype(np.float32)
    index.ids = [f"d{n}" for n in range(12)]
    index.prepared = lambda rows: rows  # type: ignore[method-assign]
    queries = chance.standard_normal((3, 4)).astype(np.float32)
    qrels = {"q0": ["d1", "d5"], "q1": [], "q2": ["d11"]}
    options = MiningOptions(count, (first, first + more), margin, seed)
    found = mine(index, ["q0", "q1", "q2"], queries, qrels, options)
    assert [one.query for one in found] == ["q0", "q2"]
    for one in found:
        scores = index.vectors @ queries[int(one.query[1])]
        best = max(scores[index.ids.index(key)] for key in one.positives)
        others = sorted((-scores[n], n) for n in range(12) if f"d{n}" not in one.positives)
        window = [n for _, n in others][first - 1 : first + more]
        allowed = [n for n in window if margin is None or scores[n] <= best - np.float32(margin)]
        chosen = [int(key[1:]) for key, _ in one.negatives]
        assert set(chosen) <= set(allowed)
        assert len(chosen) == min(count, len(allowed))
        assert [scores[n] for n in chosen] == sorted([scores[n] for n in chosen], reverse=True)


def test_ids_that_are_not_there(corom: Corom, place: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.jsonl"
    bad = tmp_path / "qrels"
    bad.write_text("q1 0 d9 1\n", "utf-8")
    assert "name 1 passages that are not in the index, such as 'd9'" in run(
        corom, place, out, qrels=bad
    )
    bad.write_text("q9 0 d1 1\n", "utf-8")
    assert "name 1 queries that are not in the queries, such as 'q9'" in run(
        corom, place, out, qrels=bad
    )
    corpus = write(tmp_path / "corpus.tsv", {"d1": "x"})
    assert f"passages that are not in '{corpus}'" in run(corom, place, out, corpus=corpus)
    assert "ranks are 5 to 2" in run(corom, place, out, "--ranks", "5", "2")
    assert not out.exists()


def test_judgements_by_tabs_and_beirs_header(tmp_path: Path) -> None:
    path = tmp_path / "qrels"
    path.write_text("query-id\tcorpus-id\tscore\nq 1\tdoc 12\t1\nq 1\t0\tdoc 3\t2\n", "utf-8")
    assert read_qrels(path) == {"q 1": ["doc 12", "doc 3"]}


def test_copies_of_a_positive_are_no_negatives() -> None:
    index = VectorIndex.__new__(VectorIndex)  # its vectors, without the files
    near = np.array([1, 0, 1e-6, 0], np.float32)
    index.vectors = np.array([[1, 0, 0, 0], near, [0.99, 0.1, 0, 0], [0, 1, 0, 0]], np.float32)
    index.ids = ["positive", "copy", "near", "far"]
    index.prepared = lambda rows: rows  # type: ignore[method-assign]
    query = np.array([[1, 0, 0, 0]], np.float32)
    for margin in (None, 0.0):
        (mined,) = mine(index, ["q"], query, {"q": ["positive"]}, MiningOptions(margin=margin))
        assert [key for key, _ in mined.negatives] == ["near", "far"]


def test_judgements_are_not_overwritten(corom: Corom, place: Path) -> None:
    paths = [
        part
        for name in ("corpus", "queries", "qrels")
        for part in (f"--{name}", place / f"{name}.tsv")
    ]
    before = (place / "qrels.tsv").read_bytes()
    done = corom("mine", place / "v", *paths, "-o", place / "qrels.tsv")
    assert done.returncode == 2
    assert "would overwrite the judgements" in done.stderr
    assert (place / "qrels.tsv").read_bytes() == before
