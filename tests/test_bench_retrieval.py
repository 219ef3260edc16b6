"""`corom bench retrieval`: rows, differences and chart of a small collection; what is refused."""

import json
import subprocess
from collections.abc import Callable
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from corom.benchmarks import cli_retrieval
from corom.benchmarks.contestants import Contestant
from corom.benchmarks.retrieval import Collection, reference_row
from corom.benchmarks.retrieval_chart import page_of
from corom.runtime import load_manifest
from corom.runtime.errors import ParityError

Corom = Callable[..., subprocess.CompletedProcess[str]]
QUERIES = 12


@pytest.fixture
def place(tmp_path: Path, parity_texts: list[str]) -> Path:
    """Passages that begin like their queries; query q0 has none."""
    texts = list(dict.fromkeys(" ".join(t.split()) for t in parity_texts if len(t) > 12))[:60]
    corpus = [f"p{n}\t{text}\n" for n, text in enumerate(texts)]
    queries = [f"q{n}\t{texts[n][:10]}\n" for n in range(QUERIES)]
    qrels = [f"q{n}\t0\tp{n}\t1\n" for n in range(1, QUERIES)]
    for name, lines in (("corpus", corpus), ("queries", queries), ("qrels", qrels)):
        (tmp_path / f"{name}.tsv").write_text("".join(lines), "utf-8")
    return tmp_path


def options(place: Path) -> list[str]:
    names = ("corpus", "queries", "qrels")
    return [word for name in names for word in (f"--{name}", str(place / f"{name}.tsv"))]


class Tags(HTMLParser):
    """The tags of a page, and what leads out of it."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [name for name, _ in attrs if name in {"src", "href"}]


def test_every_variant_is_beside_torch_and_bm25(
    corom_here: Corom, tiny_bundle: Path, tiny_checkpoint: Path, place: Path
) -> None:
    out, each = place / "found.json", place / "each.jsonl"
    more = ["--reference", tiny_checkpoint, "-o", out, "--per-query", each]
    done = corom_here("bench", "retrieval", tiny_bundle, *options(place), *more)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_bytes())
    names = [row["name"] for row in report["rows"]]
    assert names[:2] == ["torch", "corom fp32 onnxruntime"]
    assert names[-1] == "BM25"
    assert report["queries_without_answer"] == 1
    exact = report["rows"][1]
    assert exact["means"] == pytest.approx(report["rows"][0]["means"])
    assert set(exact["differences"]) == set(exact["means"])
    assert "1 queries have no answer and take no part" in done.stdout
    assert "model card" not in done.stdout  # its figures are of another collection
    lines = [json.loads(line) for line in each.read_bytes().splitlines()]
    assert [line["query"] for line in lines] == [f"q{n}" for n in range(1, QUERIES)]
    of_bm25 = [line["BM25"]["RR@10"] for line in lines]
    assert sum(of_bm25) / len(of_bm25) == pytest.approx(report["rows"][-1]["means"]["RR@10"])
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    page = Tags()
    page.feed(out.with_suffix(".html").read_text("utf-8"))
    assert page.links == []
    assert "script" not in page.tags
    text = out.with_suffix(".html").read_text("utf-8")
    assert all(f"<td>{name}</td>" in text for name in names)
    assert f"{exact['means']['RR@10']:.4f}" in text


def test_the_cards_figures_stand_beside_its_own_collection_only(
    corom: Corom, tiny_bundle: Path, place: Path
) -> None:
    done = corom("bench", "retrieval", tiny_bundle, *options(place), "--no-bm25", "--json")
    report = json.loads(done.stdout)
    assert report["model_card"] == []
    assert "model card" not in page_of(report)
    whole = report | {"model_card": list(cli_retrieval.CARD)}
    assert "<td>model card: CoROM-tiny</td><td>0.2278</td>" in page_of(whole)
    assert "| model card: BM25 | 0.1869 |" in cli_retrieval._table(whole)


def test_the_default_prompt_stands_before_torchs_passages_too(tiny_mean_bundle: Path) -> None:
    manifest = load_manifest(tiny_mean_bundle)
    prompts = {"query": "查询："}
    manifest = msgspec.structs.replace(
        manifest, prompts=prompts, default_prompt_name="query", similarity="dot"
    )
    asked: list[list[str]] = []

    def vectors_of(texts: list[str]) -> np.ndarray:
        asked.append(texts)
        return np.eye(len(texts), 4, dtype=np.float32)

    collection = Collection({"p": "一"}, {"q": "二"}, {"q": {"p": 1}})
    reference_row(manifest, vectors_of, collection)
    assert asked == [["查询：二"], ["查询：一"]]


def test_what_fails_its_proof_is_left_out_and_the_others_are_measured(
    corom_here: Corom, tiny_bundle: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = Contestant("good", "fp32", "corom", None, "bundle", {"backend": "onnxruntime"})
    lost = Contestant("lost", "int8", "corom", None, "bundle", {"precision": "int8"})
    monkeypatch.setattr(cli_retrieval, "rungs", lambda _: [lost, good])
    monkeypatch.setattr(cli_retrieval, "rung_row", partial(fail_if_int8, cli_retrieval.rung_row))
    out = place / "found.json"
    words = ["bench", "retrieval", tiny_bundle, *options(place), "--no-bm25", "-o", out]
    done = corom_here(*words)
    assert done.returncode == 1
    assert "left out: lost: too far" in done.stderr
    report = json.loads(out.read_bytes())
    assert [row["name"] for row in report["rows"]] == ["good"]
    assert report["left_out"] == ["lost"]
    monkeypatch.setattr(cli_retrieval, "rungs", lambda _: [lost])
    assert corom_here(*words).returncode == 3


def fail_if_int8(measure: Callable[..., Any], bundle: Path, rung: Contestant, *rest: Any) -> Any:
    if rung.precision == "int8":
        raise ParityError("too far")
    return measure(bundle, rung, *rest)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["-o", "none/found.json"], "there is no folder 'none'"),
        (["-o", "found.txt"], "must end in .json"),
        (["--per-query", "none/each.jsonl"], "there is no folder 'none'"),
        (["--corpus", "queries.tsv"], "passages that are not in 'queries.tsv', such as 'p1'"),
        (["--queries", "corpus.tsv"], "queries that are not in 'corpus.tsv', such as 'q1'"),
        (["--qrels", "zero.tsv"], "has no relevant passage"),
        (["--qrels", "corpus.tsv"], "queries that are not in"),
        (["--corpus", "twice.tsv"], "its id 'p1' was there before"),
    ],
)
def test_what_does_not_belong_together_is_refused_before_the_work(
    corom: Corom, tiny_bundle: Path, place: Path, more: list[str], said: str
) -> None:
    (place / "zero.tsv").write_text("q1\t0\tp1\t0\n", "utf-8")
    (place / "twice.tsv").write_text("p1\t头痛\np1\t发烧\n", "utf-8")
    done = corom("bench", "retrieval", tiny_bundle, *options(place), *more, cwd=place)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "corom fp32" not in done.stderr
