"""`corom embed -o FOLDER`: killed anywhere, it goes on, and the folder is the same to the byte."""

import fcntl
import hashlib
import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from click.testing import CliRunner

from corom.runtime import Encoder, MapBatches, VectorIndex, search
from corom.runtime.cli_embed import embed
from corom.runtime.corpus import Corpus, Passage
from corom.runtime.errors import InputError
from corom.runtime.manifest import load_manifest, manifest_sha256, sha256_of
from corom.runtime.tuning import TUNING_VERSION, Tuning, Winner, save_tuning, this_machine

Corom = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., subprocess.Popen[str]]

ROWS = 2000
OPTIONS = ("--text-column", "2", "--id-column", "1", "--shard-rows", "100", "--threads", "1")


def contents(folder: Path) -> dict[str, str]:
    """Return the name and hash of every file below a folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, parity_texts: list[str]) -> Path:
    """Ids and texts of many lengths, without header."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.tsv"
    texts = [text.replace("\t", " ") for text in parity_texts]
    lines = [f"p{n}\t{texts[n % len(texts)]}{n}\n" for n in range(ROWS)]
    path.write_text("".join(lines), "utf-8")
    return path


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, corom: Corom, tiny_bundle: Path, corpus: Path
) -> Path:
    """The folder of a job that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "vectors"
    done = corom("embed", tiny_bundle, "-i", corpus, "-o", folder, *OPTIONS)
    assert done.returncode == 0, done.stderr
    assert f"{ROWS:,} vectors of 48 in 20 shards" in done.stderr
    return folder


def test_rows_and_vectors_are_those_of_the_input(
    whole: Path, corpus: Path, tiny_bundle: Path
) -> None:
    table = pyarrow.parquet.read_table(whole)
    lines = corpus.read_text("utf-8").splitlines()
    assert table["id"].to_pylist() == [line.split("\t")[0] for line in lines]
    vectors = np.stack(table["embedding"].to_numpy())
    assert vectors.dtype == np.float32
    with Encoder(tiny_bundle) as encoder:
        expected = encoder.encode(line.split("\t")[1] for line in lines)
    np.testing.assert_allclose(vectors, expected, atol=1e-4)
    manifest = json.loads((whole / "_manifest.json").read_bytes())
    assert manifest["rows"] == sum(shard["rows"] for shard in manifest["shards"]) == ROWS
    assert manifest["job"]["bundle_sha256"] == sha256_of(tiny_bundle / "manifest.json")
    for shard in manifest["shards"]:
        assert sha256_of(whole / shard["file"]) == shard["sha256"]
    assert len(list(whole.iterdir())) == len(manifest["shards"]) + 1


def test_map_batches_gives_the_same_vectors_by_id(
    whole: Path, corpus: Path, tiny_bundle: Path
) -> None:
    table = pyarrow.parquet.read_table(whole)
    folder = dict(zip(table["id"].to_pylist(), table["embedding"].to_pylist(), strict=True))
    rows = [line.split("\t") for line in corpus.read_text("utf-8").splitlines()]
    add = MapBatches(tiny_bundle, threads=1)
    for start in range(0, ROWS, 700):  # in other batches, and backwards
        part = rows[start : start + 700][::-1]
        batch = {"id": [key for key, _ in part], "text": [text for _, text in part]}
        found = add(batch)
        expected = [folder[key] for key in found["id"]]
        np.testing.assert_allclose(found["embedding"], expected, atol=1e-5)


def kill_until_done(start: Start, command: list[Any], folder: Path, kills: int, seed: int) -> int:
    """Kill a job at random points, going on after each, until it is done; return how often."""
    chance = random.Random(seed)
    killed = 0
    while True:
        with start(*command) as process:
            if killed < kills:
                begun = len(list(folder.glob("part-*"))) if folder.exists() else 0
                while process.poll() is None and not (folder / "_manifest.json.partial").exists():
                    time.sleep(0.002)
                # Some while shards are written, some while the next start reads what is there.
                deadline = time.monotonic() + chance.uniform(0.0, 0.25) + (begun and 0.35)
                while process.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.001)
                process.kill()
            _, err = process.communicate()
        if process.returncode == 0:
            return killed
        assert process.returncode == -signal.SIGKILL, err
        killed += 1


@pytest.mark.parametrize("kills", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_at_random_points_the_folder_is_the_same_to_the_byte(
    start: Start, tiny_bundle: Path, corpus: Path, whole: Path, tmp_path: Path, kills: int
) -> None:
    killed, round_ = 0, 0
    while killed < kills:
        folder = tmp_path / f"vectors{round_}"
        command = ["embed", tiny_bundle, "-i", corpus, "-o", folder, *OPTIONS]
        killed += kill_until_done(start, command, folder, kills - killed, seed=round_)
        assert contents(folder) == contents(whole)
        round_ += 1


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_whole_shards_only_and_goes_on(
    start: Start,
    corom: Corom,
    tiny_bundle: Path,
    corpus: Path,
    whole: Path,
    tmp_path: Path,
    sent: int,
) -> None:
    folder = tmp_path / "vectors"
    command = ["embed", tiny_bundle, "-i", corpus, "-o", folder, *OPTIONS]
    with start(*command) as process:
        while not (folder / "part-00001.parquet").exists():
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(sent)
        process.communicate()
    assert process.returncode == 128 + sent
    assert not list(folder.glob(".*"))
    assert not (folder / "_manifest.json").exists()
    done = corom(*command)
    assert done.returncode == 0
    assert "Going on: " in done.stderr
    assert contents(folder) == contents(whole)


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """A finished folder to damage."""
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def test_a_finished_job_is_finished(
    corom: Corom, tiny_bundle: Path, corpus: Path, whole: Path, copy: Path, tmp_path: Path
) -> None:
    moved = shutil.copy(corpus, tmp_path / "moved.tsv")
    for path in (corpus, moved):
        done = corom("embed", tiny_bundle, "-i", path, "-o", copy, *OPTIONS)
        assert done.returncode == 0
        assert "Complete: 2,000 vectors are there already." in done.stderr
        assert contents(copy) == contents(whole)


def test_a_damaged_shard_is_made_again(
    corom: Corom, tiny_bundle: Path, corpus: Path, whole: Path, copy: Path
) -> None:
    with (copy / "part-00007.parquet").open("r+b") as file:
        file.truncate(1000)
    times = {path.name: path.stat().st_mtime_ns for path in copy.glob("part-*")}
    done = corom("embed", tiny_bundle, "-i", corpus, "-o", copy, *OPTIONS)
    assert "part-00007.parquet is not as it was written" in done.stderr
    assert contents(copy) == contents(whole)
    again = [p.name for p in copy.glob("part-*") if p.stat().st_mtime_ns != times[p.name]]
    assert again == ["part-00007.parquet"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--normalize"], "--normalize: found False, asked for True"),
        (["--dtype", "float16"], "--dtype: found float32, asked for float16"),
        (["--max-length", "64"], "--max-length: found 128, asked for 64"),
        (["--truncate-dim", "8"], "--truncate-dim: found 48, asked for 8"),
        (["--shard-rows", "50"], "--shard-rows: found 100, asked for 50"),
        (["--max-batch-tokens", "64"], "--max-batch-tokens: found 512, asked for 64"),
    ],
)
def test_another_job_is_refused(
    corom: Corom, tiny_bundle: Path, corpus: Path, copy: Path, more: list[str], said: str
) -> None:
    before = contents(copy)
    done = corom("embed", tiny_bundle, "-i", corpus, "-o", copy, *OPTIONS, *more)
    assert done.returncode == 2
    assert said in done.stderr
    assert contents(copy) == before


def test_another_bundle_and_other_rows_are_refused(
    corom: Corom,
    tiny_bundle: Path,
    tiny_mean_bundle: Path,
    corpus: Path,
    copy: Path,
    tmp_path: Path,
) -> None:
    before = contents(copy)
    done = corom("embed", tiny_mean_bundle, "-i", corpus, "-o", copy, *OPTIONS)
    assert done.returncode == 2
    assert "bundle_sha256: found" in done.stderr
    changed = tmp_path / "changed.tsv"
    changed.write_bytes(corpus.read_bytes().replace(b"p1999\t", b"p1999\tx"))
    done = corom("embed", tiny_bundle, "-i", changed, "-o", copy, *OPTIONS)
    assert done.returncode == 2
    assert "the input has changed" in done.stderr
    assert contents(copy) == before


def test_a_pipe_is_checked_row_by_row(
    corom: Corom, tiny_bundle: Path, corpus: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "vectors"
    command = ["embed", tiny_bundle, "-i", "-", "--input-format", "tsv", "-o", folder, *OPTIONS]
    text = corpus.read_text("utf-8")
    assert corom(*command, input=text).returncode == 0
    finished = contents(folder)
    (folder / "_manifest.json").rename(folder / "_manifest.json.partial")
    assert corom(*command, input=text).returncode == 0
    assert contents(folder) == finished
    others = (text.replace("p150\t", "p150\tx"), text[: len(text) // 2], text + "p2001\t头痛\n")
    for other in others:  # a finished folder is compared as well
        done = corom(*command, input=other)
        assert done.returncode == 2
        assert "the input has changed since this folder was begun" in done.stderr
        assert contents(folder) == finished
    (folder / "_manifest.json").rename(folder / "_manifest.json.partial")
    for other in others[:2]:
        done = corom(*command, input=other)
        assert done.returncode == 2
        assert "the input has changed since this folder was begun" in done.stderr


def test_a_folder_with_something_else_is_refused(
    corom: Corom, tiny_bundle: Path, corpus: Path, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").touch()
    done = corom("embed", tiny_bundle, "-i", corpus, "-o", tmp_path, *OPTIONS)
    assert done.returncode == 2
    assert "holds files that are not of corom embed (notes.txt)" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("begun", [False, True])
def test_two_jobs_on_one_folder(
    corom: Corom, tiny_bundle: Path, corpus: Path, copy: Path, begun: bool
) -> None:
    if not begun:  # the first job still computes its first shard
        shutil.rmtree(copy)
        copy.mkdir()
    handle = os.open(copy, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    done = corom("embed", tiny_bundle, "-i", corpus, "-o", copy, *OPTIONS)
    os.close(handle)
    assert done.returncode == 2
    assert "another process writes to" in done.stderr
    assert copy.is_dir()


def test_shards_of_others_are_left_alone(corom: Corom, tiny_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "spark"
    folder.mkdir()
    source = folder / "part-00000-abc.snappy.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["头痛"]}), source)
    shutil.copy(source, folder / "part-00000.parquet")
    before = contents(folder)
    done = corom("embed", tiny_bundle, "-i", f"{folder}/*.parquet", "-o", folder)
    assert done.returncode == 2
    assert "would overwrite the input" in done.stderr
    (tmp_path / "in.txt").write_text("头痛\n", "utf-8")
    done = corom("embed", tiny_bundle, "-i", tmp_path / "in.txt", "-o", folder)
    assert done.returncode == 2
    assert "holds files that are not of corom embed" in done.stderr
    assert contents(folder) == before


def test_no_output_overwrites_its_input(corom: Corom, tiny_bundle: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "头痛"}\n{"text": null}\n', "utf-8")
    before = source.read_bytes()
    outputs = (["-o", source], ["-o", tmp_path / "v", "--bad-rows", source])
    for name, more in itertools.product((source, source.as_uri()), outputs):
        done = corom("embed", tiny_bundle, "-i", name, *more)
        assert done.returncode == 2
        assert "would overwrite the input" in done.stderr
        assert source.read_bytes() == before


@pytest.mark.parametrize(
    ("bad_rows", "said"),
    [("none/b.jsonl", "there is no folder"), ("v/b.jsonl", "lies in the output folder")],
)
def test_a_file_of_bad_rows_that_cannot_be_is_refused_first(
    corom: Corom, tiny_bundle: Path, corpus: Path, tmp_path: Path, bad_rows: str, said: str
) -> None:
    (tmp_path / "v").mkdir()
    command = ["embed", tiny_bundle, "-i", corpus, "-o", tmp_path / "v", *OPTIONS]
    done = corom(*command, "--bad-rows", tmp_path / bad_rows)
    assert done.returncode == 2
    assert said in done.stderr


def test_a_file_name_that_is_no_utf8(corom: Corom, tiny_bundle: Path, tmp_path: Path) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xd3\xef.txt")
    Path(name).write_text("头痛\n", "utf-8")
    done = corom("embed", tiny_bundle, "-i", name, "-o", tmp_path / "v")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "v" / "_manifest.json").read_bytes())
    assert manifest["job"]["inputs"][0]["name"].endswith("/\\xd3\\xef.txt")


def test_passages_get_the_prompt_of_passages(
    corom: Corom, tiny_mean_bundle: Path, tmp_path: Path, rehash: Callable[..., None]
) -> None:
    bundle = Path(shutil.copytree(tiny_mean_bundle, tmp_path / "bundle"))
    rehash(bundle, prompts={"query": "查询：", "passage": "段落："})
    (tmp_path / "t.txt").write_text("头痛\n", "utf-8")
    assert corom("embed", bundle, "-i", tmp_path / "t.txt", "-o", tmp_path / "v").returncode == 0
    found = np.stack(pyarrow.parquet.read_table(tmp_path / "v")["embedding"].to_numpy())[0]
    with Encoder(bundle) as encoder:
        assert np.allclose(found, encoder.encode_document("头痛"), atol=1e-6)
        assert not np.allclose(found, encoder.encode("头痛"), atol=1e-3)
    manifest = json.loads((tmp_path / "v" / "_manifest.json").read_bytes())
    assert manifest["job"]["prompt_name"] == "passage"


def tune(bundle: Path, cache: Path, **changes: Any) -> None:
    """Note a winner for this machine, as `corom tune` would."""
    fields: dict[str, Any] = {
        "backend": "openvino", "precision": "fp32", "threads": 1, "workers": 1,
        "cpus": 2, "batch_tokens": 4096, "cosine_min": 1.0, "p50_ms": 1.0, "texts_per_second": 1.0,
    }  # fmt: skip
    winner = Winner(**fields | changes)
    tuning = Tuning(
        version=TUNING_VERSION,
        bundle=manifest_sha256(bundle),
        machine=this_machine(),
        min_cosine=0.99,
        latency=winner,
        throughput=winner,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COROM_CACHE", str(cache))
        save_tuning(load_manifest(bundle), tuning)


def unfinished(folder: Path) -> None:
    """Leave a folder as a job does that was killed before its last shard."""
    (folder / "_manifest.json").rename(folder / "_manifest.json.partial")
    sorted(folder.glob("part-*"))[-1].unlink()


@pytest.mark.parametrize("begun_tuned", [False, True])
def test_what_auto_chose_stays_chosen(
    corom: Corom,
    tiny_bundle: Path,
    corpus: Path,
    tmp_path: Path,
    offline_environment: dict[str, str],
    begun_tuned: bool,
) -> None:
    tune(tiny_bundle, tmp_path / "cache")
    untuned = offline_environment | {"COROM_CACHE": str(tmp_path / "none")}
    tuned = offline_environment | {"COROM_CACHE": str(tmp_path / "cache")}
    first, then = (tuned, untuned) if begun_tuned else (untuned, tuned)
    columns = ("--text-column", "2", "--id-column", "1", "--shard-rows", "500")
    command = ["embed", tiny_bundle, "-i", corpus, "-o", tmp_path / "v", *columns]
    done = corom(*command, env=first)
    choice = "fp32 by openvino on cpu" if begun_tuned else "fp32 by onnxruntime on cpu"
    assert f"tiny: {choice}" in done.stderr
    finished = contents(tmp_path / "v")
    unfinished(tmp_path / "v")
    done = corom(*command, env=then)
    assert done.returncode == 0, done.stderr
    assert f"tiny: {choice}\n" in done.stderr
    assert "Going on: 1,500 vectors" in done.stderr
    assert contents(tmp_path / "v") == finished
    job = json.loads((tmp_path / "v" / "_manifest.json").read_bytes())["job"]
    assert job["batch_tokens"] == (4096 if begun_tuned else 512)
    other = "onnxruntime" if begun_tuned else "openvino"
    done = corom(*command, "--backend", other, env=then)
    assert done.returncode == 2
    assert f"--backend: found {job['backend']}, asked for {other}" in done.stderr
    done = corom(*command, "--threads", "1", env=tuned)
    assert done.returncode == 0, done.stderr
    assert f"tiny: {choice}\n" in done.stderr
    assert contents(tmp_path / "v") == finished


def test_rows_left_out_before_a_kill_are_not_lost(
    start: Start, corom: Corom, tiny_bundle: Path, corpus: Path, tmp_path: Path
) -> None:
    source = tmp_path / "in.tsv"
    source.write_bytes(b"p0\n" + corpus.read_bytes().replace(b"p0\t", b"x0\t", 1))
    notes, folder = tmp_path / "bad.jsonl", tmp_path / "v"
    command = ["embed", tiny_bundle, "-i", source, "-o", folder, *OPTIONS, "--bad-rows", notes]
    with start(*command) as process:
        while not (folder / "part-00001.parquet").exists():
            assert process.poll() is None
            time.sleep(0.002)
        process.kill()
        process.communicate()
    assert not notes.exists()
    assert len(list(tmp_path.glob(".bad.jsonl.*"))) == 1
    assert corom(*command).returncode == 0
    assert [json.loads(line)["row"] for line in notes.read_text().splitlines()] == [1]
    assert {path.name for path in tmp_path.iterdir()} == {"in.tsv", "bad.jsonl", "v"}


def test_a_full_disk_leaves_whole_shards_and_the_job_goes_on(
    corom: Corom, tiny_bundle: Path, corpus: Path, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "vectors"
    command = ["embed", tiny_bundle, "-i", corpus, "-o", folder, *OPTIONS]

    def limit() -> None:  # as a full disk: no file of more than this
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, 15_000))

    done = corom(*command, preexec_fn=limit)
    assert done.returncode == 3
    assert ".parquet': File too large" in done.stderr or "manifest" in done.stderr, done.stderr
    assert not folder.exists() or not list(folder.glob(".*"))
    assert corom(*command).returncode == 0
    assert contents(folder) == contents(whole)


BAD = ["1\t好\n", "2\n", "1\t又\n", "3\t\xff\n", "4\t好\n"]


@pytest.fixture
def with_bad_rows(tmp_path: Path) -> Path:
    """Rows 2 to 4 of 5 cannot be used: no text, an id that was there, no UTF-8."""
    path = tmp_path / "bad.tsv"
    path.write_bytes("".join(BAD[:3]).encode() + b"3\t\xff\n" + BAD[4].encode())
    return path


def test_a_bad_row_stops_the_job_before_it_begins(
    corom: Corom, tiny_bundle: Path, with_bad_rows: Path, tmp_path: Path
) -> None:
    done = corom("embed", tiny_bundle, "-i", with_bad_rows, "-o", tmp_path / "v", *OPTIONS)
    assert done.returncode == 2
    assert "row 2 of" in done.stderr
    assert "it has 1 fields" in done.stderr
    assert "3 of 5 rows cannot be used. Mend the input, or pass --bad-rows" in done.stderr
    assert not (tmp_path / "v").exists()


def test_bad_rows_go_to_their_file_and_counts_add_up(
    corom: Corom, tiny_bundle: Path, with_bad_rows: Path, tmp_path: Path
) -> None:
    folder, notes = tmp_path / "v", tmp_path / "bad.jsonl"
    command = ["embed", tiny_bundle, "-i", with_bad_rows, "-o", folder, *OPTIONS]
    command += ["--bad-rows", notes, "--shard-rows", "2"]
    done = corom(*command)
    assert done.returncode == 0, done.stderr
    assert "2 vectors of 48 in 3 shards" in done.stderr
    assert "3 rows left out" in done.stderr
    records = [json.loads(line) for line in notes.read_text("utf-8").splitlines()]
    assert [record["row"] for record in records] == [2, 3, 4]
    for record, reason in zip(records, ("fields", "was there before", "UTF-8"), strict=True):
        assert reason in record["reason"]
        assert record["file"] == str(with_bad_rows)
    assert pyarrow.parquet.read_table(folder)["id"].to_pylist() == ["1", "4"]
    manifest = json.loads((folder / "_manifest.json").read_bytes())
    assert [(s["rows"], s["bad_rows"]) for s in manifest["shards"]] == [(1, 1), (0, 2), (1, 0)]
    assert corom(*command).returncode == 0
    assert len(notes.read_text("utf-8").splitlines()) == 3
    before, again = contents(folder), tmp_path / "again.jsonl"
    done = corom(*(again if word == notes else word for word in command))
    assert (done.returncode, "Complete" in done.stderr) == (0, True), done.stderr
    assert again.read_bytes() == notes.read_bytes()
    assert contents(folder) == before
    index = VectorIndex(folder)  # one of its shards is empty
    assert index.ids == ["1", "4"]
    assert [hit.id for hit in search(index, index.vectors[:1], 1)[0]] == ["1"]


def test_a_corpus_without_one_row_that_can_be_used(
    corom: Corom, tiny_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": null}\n', "utf-8")
    command = ["embed", tiny_bundle, "-i", tmp_path / "bad.jsonl", "-o", tmp_path / "v"]
    done = corom(*command, "--bad-rows", tmp_path / "notes")
    assert done.returncode == 2
    assert "not one row can be used" in done.stderr


def test_without_an_id_column_the_id_is_the_place(
    corom: Corom, tiny_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("头痛\n\n发烧\n", "utf-8")
    (tmp_path / "b.txt").write_text("咳嗽\n", "utf-8")
    done = corom("embed", tiny_bundle, "-i", f"{tmp_path}/*.txt", "-o", tmp_path / "v")
    assert done.returncode == 0, done.stderr
    table = pyarrow.parquet.read_table(tmp_path / "v")
    assert table["id"].to_pylist() == [0, 1, 2, 3]
    assert str(table.schema.field("embedding").type) == "fixed_size_list<element: float>[48]"


def test_half_precision_halves_the_vectors(
    corom: Corom, tiny_bundle: Path, corpus: Path, whole: Path, tmp_path: Path
) -> None:
    done = corom(
        "embed", tiny_bundle, "-i", corpus, "-o", tmp_path / "v", *OPTIONS, "--dtype", "float16"
    )
    assert done.returncode == 0
    half = np.stack(pyarrow.parquet.read_table(tmp_path / "v")["embedding"].to_numpy())
    full = np.stack(pyarrow.parquet.read_table(whole)["embedding"].to_numpy())
    assert half.dtype == np.float16
    assert np.array_equal(half, full.astype(np.float16))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-i", "absent*.tsv", "-o", "v"], "no file matches 'absent*.tsv'"),
        (["-i", "empty.txt", "-o", "v"], "not one row is there in: empty.txt"),
        (["-i", "cut.txt.gz", "-o", "v"], "damaged or truncated gzip"),
        (["-i", "a.txt", "-o", "v.csv"], "must be a folder, or must end in one of: .npy"),
        (["-i", "a.txt", "-o", "a.txt"], "must be a folder"),
        (["-i", "a.txt", "-o", "none/v"], "there is no folder 'none'"),
        (["好", "-o", "memory://v"], "output 'memory://v' is a URL"),
        (["-i", "a.txt", "-o", "v.npy", "--bad-rows", "b"], "--bad-rows is for a folder"),
        (["-i", "a.txt", "--dtype", "float16"], "--dtype is for a folder"),
        (["-i", "a.tsv", "-o", "v.npy", "--id-column", "id"], "holds no ids"),
        (["好", "--id-column", "id"], "--text-column and --id-column are for --input"),
        (["-i", "a.tsv", "-o", "v"], "has no column 'text'; it has: id, body"),
        (["-i", "a.txt", "-i", "a.txt", "-o", "v"], "is given twice"),
        (["-i", "long.txt", "-o", "v", "--error-on-truncate"], "(Text 0 is row 1 of 'long.txt'.)"),
    ],
)
def test_bad_input_is_exit_code_2_and_leaves_nothing(
    corom: Corom, tiny_bundle: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    (tmp_path / "a.txt").write_text("好\n", "utf-8")
    (tmp_path / "long.txt").write_text("好" * 200 + "\n", "utf-8")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "a.tsv").write_text("id\tbody\n1\t好\n", "utf-8")
    (tmp_path / "cut.txt.gz").write_bytes(bytes.fromhex("1f8b0800000000000003"))
    before = contents(tmp_path)
    done = corom("embed", tiny_bundle, *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert contents(tmp_path) == before
    assert not (tmp_path / "v").exists()


def test_ids_travel_in_json_lines(corom: Corom, tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,text\nx,"头,痛"\ny,发烧\n', "utf-8")
    done = corom("embed", tiny_bundle, "-i", tmp_path / "a.csv", "--id-column", "id")
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(r["id"], r["text"]) for r in records] == [("x", "头,痛"), ("y", "发烧")]


@pytest.mark.parametrize("made_before", [False, True])
def test_without_one_good_row_the_reasons_stay_and_the_folder_can_be_used(
    corom: Corom, tiny_bundle: Path, tmp_path: Path, made_before: bool
) -> None:
    source, folder = tmp_path / "rows.jsonl", tmp_path / "v"
    source.write_text('{"text": null}\n{"text": 3}\n', "utf-8")
    if made_before:
        folder.mkdir(mode=0o750)
    command = ["embed", tiny_bundle, "-i", source, "-o", folder, "--bad-rows", tmp_path / "notes"]
    assert corom(*command).returncode == 2
    assert len((tmp_path / "notes").read_text("utf-8").splitlines()) == 2
    assert folder.exists() == made_before
    source.write_text('{"text": "头痛"}\n', "utf-8")
    done = corom(*command)
    assert done.returncode == 0, done.stderr
    assert VectorIndex(folder).ids == [0]


def test_a_file_that_is_altered_while_it_is_embedded_is_refused(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, times = tmp_path / "rows.txt", count(1)
    source.write_text("头痛\n发热\n", "utf-8")
    read = Corpus.passages

    def passages(corpus: Corpus) -> Iterator[Passage]:
        yield from read(corpus)
        if next(times) == 2:  # the first time is the survey
            source.write_text("头痛\n咳嗽\n", "utf-8")

    monkeypatch.setattr(Corpus, "passages", passages)
    done = CliRunner().invoke(
        embed, [str(tiny_bundle), "-i", str(source), "-o", str(tmp_path / "v")]
    )
    assert isinstance(done.exception, InputError)
    assert "the input has changed" in str(done.exception)
    with pytest.raises(InputError, match="its job was not finished"):
        VectorIndex(tmp_path / "v")
