"""Folders of vectors behind a URL: the same files as on a disk, and nothing of others is lost."""

import contextlib
import hashlib
import itertools
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from corom.runtime import Encoder, VectorIndex, search
from corom.runtime.corpus import Corpus
from corom.runtime.embedder import Advance, Embedded, LocalEmbedder
from corom.runtime.embedding_job import embed_corpus, job_of
from corom.runtime.errors import BundleError, InputError, UnavailableError
from corom.runtime.job_source import JobSource
from corom.runtime.options import EncodeOptions
from corom.runtime.row import Columns
from corom.runtime.shard_manifest import MANIFEST, PARTIAL, ShardManifest, decoded, encoded
from corom.runtime.shards import ShardFolder
from corom.runtime.store import Fill, Store, Written
from corom.runtime.store_disk import DiskStore
from corom.runtime.store_url import UrlStore
from corom.runtime.stores import open_store, place_of

fsspec = pytest.importorskip("fsspec", reason="run: pip install 'corom[ray]'")

ROWS = 230
JOB: dict[str, object] = {
    "dtype": "float32",
    "normalize": False,
    "prompt_name": None,
    "truncate": True,
    "shard_rows": 50,
}
_numbers = itertools.count()


@pytest.fixture
def url() -> Iterator[str]:
    """A URL of fsspec's memory with nothing behind it."""
    name = f"memory://stores/{next(_numbers)}"
    yield name
    files = fsspec.filesystem("memory")
    if files.exists("/stores"):
        files.rm("/stores", recursive=True)


@pytest.fixture(params=["disk", "url"])
def store(request: pytest.FixtureRequest, url: str, tmp_path: Path) -> Store:
    """Each kind of store, empty."""
    return open_store(tmp_path / "new" / "folder" if request.param == "disk" else url)


def test_what_was_put_is_there_until_it_is_removed(store: Store) -> None:
    assert store.names() == []
    assert store.read("a") is None
    with store.held():
        store.put("b", b"1")
        written = store.write("a", lambda file: file.writelines([b"1", b"2"]))
        assert written == Written("a", 2, hashlib.sha256(b"12").hexdigest())
        store.put("b", b"123")
        assert store.names() == ["a", "b"]
        assert (store.read("a"), store.read("b"), store.read("c")) == (b"12", b"123", None)
        assert store.holds("b", 3, hashlib.sha256(b"123").hexdigest())
        assert not store.holds("b", 2, hashlib.sha256(b"12").hexdigest())
        assert not store.holds("c", 0, hashlib.sha256(b"").hexdigest())
        store.rename("a", "b")
        assert store.names() == ["b"]
        assert store.read("b") == b"12"
        store.remove("b")
        store.remove("b")
    assert store.names() == []


def test_one_process_holds_it(store: Store) -> None:
    with store.held():
        store.put("a", b"")
        with (
            pytest.raises(InputError, match="another process writes to '.*' now"),
            open_store(store.name).held(),
        ):
            pass
    with open_store(store.name).held():
        assert store.names() == ["a"]


def test_what_names_a_disk_and_what_does_not(tmp_path: Path) -> None:
    for name in (tmp_path, str(tmp_path), f"file://{tmp_path}"):
        assert place_of(name) == tmp_path
        assert isinstance(open_store(name), DiskStore)
    assert place_of("memory://a/b") == "memory://a/b"
    assert place_of("file://localhost/a") == place_of("local:///a") == Path("/a")
    assert isinstance(open_store("memory://a/b/"), UrlStore)
    for nothing in ("s3://", "memory:///", "file://"):
        with pytest.raises(InputError, match="names no place"):
            open_store(nothing)
    assert open_store("memory://a/b/").name == "memory://a/b"


def test_a_driver_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with pytest.raises(UnavailableError, match="s3fs"):
        open_store("s3://bucket/vectors")
    with pytest.raises(InputError, match="nowhere://a"):
        open_store("nowhere://a")


def test_what_fails_while_writing_is_no_bug(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoCredentialsError(Exception):
        """As a driver has its own."""

    opened = open_store(url)
    failures = (
        (PermissionError("denied"), UnavailableError),
        (TimeoutError(), UnavailableError),
        (NoCredentialsError("none"), UnavailableError),
        (FileNotFoundError("no such bucket"), InputError),
    )
    for error, expected in failures:

        def fail(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(fsspec.filesystem("memory"), "pipe_file", fail)
        said = str(error) or "TimeoutError"
        with pytest.raises(expected, match=f"'{url}/a' cannot be written: {said}"):
            opened.put("a", b"")


@pytest.fixture(scope="module")
def encoder(tiny_bundle: Path) -> Iterator[Encoder]:
    """An encoder of one thread."""
    with Encoder(tiny_bundle, threads=1) as opened:
        yield opened


@pytest.fixture
def corpus(tmp_path: Path, parity_texts: list[str]) -> Corpus:
    """Ids and texts."""
    texts = [text.replace("\t", " ") for text in parity_texts]
    lines = [f"p{n}\t{texts[n % len(texts)]}{n}\n" for n in range(ROWS)]
    (tmp_path / "corpus.tsv").write_text("".join(lines), "utf-8")
    return Corpus([str(tmp_path / "corpus.tsv")], Columns("2", "1"))


Run = Callable[..., ShardManifest]


@pytest.fixture
def run(encoder: Encoder, tiny_bundle: Path, corpus: Corpus) -> Run:
    """Return the function that runs the job to a place, or until so many shards are written."""

    def run(
        place: str | Path,
        shards: int | None = None,
        bad_rows: Path | None = None,
        **chosen: object,
    ) -> ShardManifest:
        embedder = StoppedEmbedder(encoder, {}, shards)
        job = job_of(embedder.described, tiny_bundle, corpus, **JOB | chosen)
        return embed_corpus(embedder, corpus, ShardFolder(place), job, bad_rows=bad_rows)

    return run


class StoppedEmbedder(LocalEmbedder):
    """Is interrupted when so many shards are written; None: never."""

    def __init__(self, encoder: Encoder, options: EncodeOptions, shards: int | None) -> None:
        super().__init__(encoder, options)
        self._shards = shards

    def embed(self, source: JobSource, advance: Advance) -> Iterator[Embedded]:
        """Yield as many portions with their vectors."""
        for count, done in enumerate(super().embed(source, advance)):
            if count == self._shards:
                raise KeyboardInterrupt
            yield done


def contents(place: str | Path) -> dict[str, bytes | None]:
    """Return every file of a store."""
    opened = open_store(place)
    return {name: opened.read(name) for name in opened.names()}


def test_the_files_are_those_of_a_disk(run: Run, url: str, tmp_path: Path) -> None:
    assert run(url) == run(tmp_path / "vectors")
    assert contents(url) == contents(tmp_path / "vectors")
    assert len(contents(url)) == 6
    before = contents(url)
    assert run(url).rows == ROWS  # and finds it done
    assert contents(url) == before


def test_rows_that_cannot_be_used_go_to_their_file_once(
    run: Run, corpus: Corpus, url: str, tmp_path: Path
) -> None:
    with Path(corpus.names[0]).open("a", encoding="utf-8") as file:
        file.write("p0\t来过\nno text\n")  # behind the last shard that is there when it goes on
    with pytest.raises(KeyboardInterrupt):
        run(url, 2, bad_rows=tmp_path / "bad")
    assert not (tmp_path / "bad").exists()
    assert run(url, bad_rows=tmp_path / "bad").bad_rows == 2
    run(tmp_path / "vectors", bad_rows=tmp_path / "bad too")
    assert contents(url) == contents(tmp_path / "vectors")
    assert (tmp_path / "bad").read_bytes() == (tmp_path / "bad too").read_bytes()
    assert len((tmp_path / "bad").read_text("utf-8").splitlines()) == 2


def test_killed_before_its_last_act_was_whole_it_leaves_nothing_over(run: Run, url: str) -> None:
    run(url)
    before = contents(url)
    open_store(url).put(PARTIAL, before[MANIFEST] or b"")  # copied, and not yet removed
    run(url)
    assert contents(url) == before


@pytest.mark.parametrize("shards", range(5))
def test_interrupted_it_goes_on_to_the_same_files(
    run: Run, url: str, tmp_path: Path, shards: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(url, shards)
    written = {f"part-{n:05d}.parquet" for n in range(shards)}
    assert set(contents(url)) == (written | {PARTIAL} if shards else set())
    store = open_store(url)
    store.put(f"part-{shards:05d}.parquet", b"half of it")  # killed while it was written
    if not shards:  # nothing was written by the job: the file is somebody else's
        with pytest.raises(InputError, match=r"holds files that are not of corom embed \(part-0"):
            run(url)
        store.remove("part-00000.parquet")
    run(url)
    run(tmp_path / "vectors")
    assert contents(url) == contents(tmp_path / "vectors")


def test_interrupted_while_the_first_shard_is_sent_it_goes_on(
    run: Run, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = UrlStore.write

    def interrupted(store: UrlStore, name: str, fill: Fill) -> Written:
        write(store, name, fill)  # it arrives, although nobody waits for it any more
        raise KeyboardInterrupt

    with monkeypatch.context() as during:
        during.setattr(UrlStore, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(url)
    assert set(contents(url)) == {PARTIAL, "part-00000.parquet"}
    run(url)
    run(tmp_path / "vectors")
    assert contents(url) == contents(tmp_path / "vectors")


def test_a_shard_of_another_size_is_made_again(run: Run, url: str) -> None:
    run(url)
    before = contents(url)
    open_store(url).put("part-00002.parquet", b"cut off")
    with pytest.raises(BundleError, match="part-00002.parquet' is missing or was altered"):
        VectorIndex(url)
    run(url)
    assert contents(url) == before


def test_a_shard_that_was_altered_is_made_again_once_it_is_removed(run: Run, url: str) -> None:
    run(url)
    before = contents(url)
    store = open_store(url)
    store.put("part-00002.parquet", (before["part-00002.parquet"] or b"")[:-9] + b"X" * 9)
    with pytest.raises(BundleError, match=r"was altered\. Remove it, then run its corom embed"):
        VectorIndex(url)
    store.remove("part-00002.parquet")
    run(url)
    assert contents(url) == before


def test_other_jobs_and_other_files_are_left_alone(run: Run, url: str) -> None:
    run(url)
    before = contents(url)
    with pytest.raises(InputError, match="was made by another job: --dtype: found float32"):
        run(url, dtype="float16")
    assert contents(url) == before
    open_store(f"{url}-other").put("notes.txt", b"mine")
    with pytest.raises(InputError, match=r"not of corom embed \(notes.txt\)"):
        run(f"{url}-other")
    assert contents(f"{url}-other") == {"notes.txt": b"mine"}


def test_a_job_that_another_machine_begins_meanwhile_is_not_written_over(
    run: Run, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, write = open_store(url), ShardFolder.write

    def meanwhile(folder: ShardFolder, number: int, *rest: object) -> object:
        if number == 2:
            content = store.read(PARTIAL)
            assert content is not None
            store.put(PARTIAL, content.replace(b'"float32"', b'"float16"'))
        return write(folder, number, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(ShardFolder, "write", meanwhile)
    with pytest.raises(InputError, match=f"another job writes to '{url}' now"):
        run(url)
    found = decoded(store.read(PARTIAL) or b"", PARTIAL)
    assert found.job.dtype == "float16"
    assert encoded(found) == store.read(PARTIAL)


def test_search_reads_it(run: Run, url: str, tmp_path: Path, encoder: Encoder) -> None:
    run(url)
    run(tmp_path / "vectors")
    queries = encoder.encode(["头痛怎么办", "发烧"])
    there, here = VectorIndex(url), VectorIndex(tmp_path / "vectors")
    assert there.ids == here.ids
    assert np.array_equal(there.vectors, here.vectors)
    assert search(there, queries, 3) == search(url, queries, 3) == search(here, queries, 3)
    with pytest.raises(InputError, match=f"'{url}-none' has no {MANIFEST}"):
        VectorIndex(f"{url}-none")


def test_the_command_takes_a_url_for_a_folder(
    corom: Callable[..., subprocess.CompletedProcess[str]], tiny_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("头痛\n发烧\n", "utf-8")
    where = f"file://{tmp_path}/vectors"
    done = corom("embed", tiny_bundle, "-i", tmp_path / "a.txt", "-o", where)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "vectors" / MANIFEST).is_file()
    found = corom("search", where, "头痛", "-k", "1")
    assert found.returncode == 0, found.stderr
    for output, said in (
        ("memory://v.npy", "only an --input"),
        ("memory://v.csv", "must be a folder"),
        ("nowhere://v", "'nowhere://v' cannot be read"),
    ):
        given = ["头痛"] if output.endswith("npy") else ["-i", tmp_path / "a.txt"]
        refused = corom("embed", tiny_bundle, *given, "-o", output)
        assert refused.returncode == 2
        assert said in refused.stderr


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The settings of a server that speaks S3, in a process of its own; it has s3://vectors."""
    for package in ("s3fs", "moto", "flask"):
        pytest.importorskip(package, reason="run: pip install s3fs 'moto[server]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    settings = {
        "FSSPEC_S3_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            import s3fs

            files = s3fs.S3FileSystem(endpoint_url=endpoint, key="a", secret="b")  # noqa: S106
            for _attempt in range(300):
                try:
                    files.mkdir("vectors")
                    break
                except OSError:
                    time.sleep(0.1)
            fsspec.config.set_conf_env(fsspec.config.conf)
            yield settings
            fsspec.config.conf.pop("s3")
        finally:
            server.kill()


@pytest.mark.slow
def test_killed_at_random_points_a_bucket_holds_the_files_of_a_disk(
    s3: dict[str, str],
    offline_environment: dict[str, str],
    start: Callable[..., subprocess.Popen[str]],
    corom: Callable[..., subprocess.CompletedProcess[str]],
    tiny_bundle: Path,
    corpus: Corpus,
    tmp_path: Path,
) -> None:
    options = ["--text-column", "2", "--id-column", "1", "--shard-rows", "5", "--threads", "1"]
    command = ["embed", tiny_bundle, "-i", *corpus.names, *options]
    done = corom(*command, "-o", tmp_path / "vectors")
    assert done.returncode == 0, done.stderr
    chance, killed = random.Random(0), 0
    url, there = "s3://vectors/some/folder", {"env": offline_environment | s3}
    while True:
        with start(*command, "-o", url, **there) as process:
            if killed < 20:
                while process.poll() is None and PARTIAL not in open_store(url).names():
                    time.sleep(0.02)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(chance.uniform(0.0, 0.6))
                process.kill()
            _, err = process.communicate()
        if process.returncode == 0:
            assert "Going on" in err
            break
        assert process.returncode == -signal.SIGKILL, err
        killed += 1
    assert killed >= 3
    assert contents(url) == contents(tmp_path / "vectors")
    found = corom("search", url, "头痛", "-k", "1", **there)
    assert found.returncode == 0, found.stderr
