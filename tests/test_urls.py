"""Input behind URLs: the same rows as from a path, and clear errors."""

import gzip
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as arrow
import pyarrow.parquet
import pytest

from corom.runtime.corpus import Corpus, printable
from corom.runtime.errors import InputError, UnavailableError
from corom.runtime.row import Columns

fsspec = pytest.importorskip("fsspec", reason="run: pip install 'corom[ray]'")

TSV = "p1\t头痛\np2\t发烧\n".encode()
NUMBERED = Columns("2", "1")


@pytest.fixture
def memory() -> Iterator[Callable[[str, bytes], str]]:
    """Return the function that puts a file into fsspec's memory; returns its URL."""
    files = fsspec.filesystem("memory")

    def put(name: str, content: bytes) -> str:
        files.pipe(f"/corpus/{name}", content)
        return f"memory://corpus/{name}"

    yield put
    files.rm("/corpus", recursive=True)


def texts(corpus: Corpus) -> list[tuple[object, str | None]]:
    return [(passage.key, passage.text) for passage in corpus.passages()]


def test_rows_and_hashes_are_those_of_a_path(
    memory: Callable[[str, bytes], str], tmp_path: Path
) -> None:
    frame = arrow.table({"id": ["p1", "p2"], "text": ["头痛", "发烧"]})
    pyarrow.parquet.write_table(frame, tmp_path / "rows.parquet")
    contents = {
        "rows.tsv": TSV,
        "rows.tsv.gz": gzip.compress(TSV),
        "rows.parquet": (tmp_path / "rows.parquet").read_bytes(),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        columns = Columns(id="id") if name == "rows.parquet" else NUMBERED
        here = Corpus([str(tmp_path / name)], columns)
        for url in (memory(name, content), f"file://{tmp_path / name}"):
            there = Corpus([url], columns)
            assert texts(there) == texts(here) == [("p1", "头痛"), ("p2", "发烧")]
            assert there.can_be_read_twice
            (described,), (expected,) = there.files(), here.files()
            assert described.sha256 == expected.sha256
            assert described.size_bytes == expected.size_bytes


def test_a_pattern_is_sorted(memory: Callable[[str, bytes], str]) -> None:
    for name in ("b.txt", "a.txt", "c.md"):
        memory(name, name.encode())
    corpus = Corpus(["memory://corpus/*.txt"], Columns())
    assert texts(corpus) == [(0, "a.txt"), (1, "b.txt")]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("memory://corpus/absent.txt", "there is no file 'memory://corpus/absent.txt'"),
        ("memory://corpus/*.csv", "no file matches"),
        ("nowhere://a.txt", "'nowhere://a.txt' cannot be read"),
    ],
)
def test_what_is_not_there(memory: Callable[[str, bytes], str], url: str, said: str) -> None:
    memory("a.txt", b"a")
    with pytest.raises(InputError) as raised:
        Corpus([url], Columns())
    assert said in str(raised.value)


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with pytest.raises(UnavailableError, match="s3fs"):
        Corpus(["s3://bucket/a.txt"], Columns())


def test_a_damaged_gzip(memory: Callable[[str, bytes], str]) -> None:
    url = memory("cut.tsv.gz", gzip.compress(TSV * 100)[:-12])
    with pytest.raises(InputError, match="damaged or truncated gzip"):
        texts(Corpus([url], NUMBERED))


def test_embed_reads_urls(
    corom: Callable[..., subprocess.CompletedProcess[str]], tiny_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.tsv").write_bytes(TSV)
    where = ["-i", f"file://{tmp_path}/*.tsv", "-o", tmp_path / "v"]
    done = corom("embed", tiny_bundle, *where, "--text-column", "2", "--id-column", "1")
    assert done.returncode == 0, done.stderr
    assert pyarrow.parquet.read_table(tmp_path / "v")["id"].to_pylist() == ["p1", "p2"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("https://host/c.jsonl?X-Sig=SECRET", "https://host/c.jsonl"),
        ("https://user:SECRET@host:8/c.jsonl", "https://host:8/c.jsonl"),
        ("simplecache::https://host/c.jsonl?X-Sig=SECRET", "simplecache::https://host/c.jsonl"),
        ("s3://bucket/a@b?c", "s3://bucket/a@b?c"),
    ],
)
def test_records_hold_no_secrets_of_urls(name: str, shown: str) -> None:
    assert printable(name) == shown
