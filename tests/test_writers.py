"""Writers: every row arrives, in .npy, .jsonl and .parquet; a file appears whole or not at all."""

import json
import os
import stat
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from corom.runtime.errors import InputError
from corom.runtime.writers import SUFFIXES, WRITERS, open_writer

DIMENSION = 3
WINDOWS = st.lists(st.lists(st.text(max_size=12), max_size=5), max_size=4)


def read(path: Path) -> tuple[list[str] | None, np.ndarray]:
    """Return texts and vectors of a file, read by what users read it with."""
    if path.suffix == ".npy":
        return None, np.load(path, allow_pickle=False)
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
        vectors = np.array([row["embedding"] for row in rows], np.float32)
        return [row["text"] for row in rows], vectors.reshape(-1, DIMENSION)
    table = pyarrow.parquet.read_table(path)
    assert table.schema.field("embedding").type == pyarrow.list_(pyarrow.float32(), DIMENSION)
    vectors = np.array(table["embedding"].to_pylist(), np.float32).reshape(-1, DIMENSION)
    return table["text"].to_pylist(), vectors


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(
    deadline=None,
    max_examples=30,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(windows=WINDOWS)
def test_every_row_arrives_exactly(tmp_path: Path, suffix: str, windows: list[list[str]]) -> None:
    path = tmp_path / f"vectors{suffix}"
    random = np.random.default_rng(0)
    vectors = [random.normal(size=(len(w), DIMENSION)).astype(np.float32) for w in windows]
    with open_writer(path, DIMENSION) as writer:
        for window, rows in zip(windows, vectors, strict=True):
            writer.write(window, rows)
    texts, found = read(path)
    expected = np.concatenate([np.empty((0, DIMENSION), np.float32), *vectors])
    assert writer.rows == len(expected)
    assert texts in (None, [text for window in windows for text in window])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_view_with_gaps_is_written_as_it_reads(tmp_path: Path) -> None:
    vectors = np.arange(24, dtype=np.float32).reshape(4, 6)[:, ::2]
    with open_writer(tmp_path / "v.npy", DIMENSION) as writer:
        writer.write(["a"] * 4, vectors)
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), vectors)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("before", [None, b"what was there"])
def test_after_an_error_all_is_as_before(
    tmp_path: Path, suffix: str, error: type[BaseException], before: bytes | None
) -> None:
    path = tmp_path / f"vectors{suffix}"
    if before is not None:
        path.write_bytes(before)
    with pytest.raises(error), open_writer(path, DIMENSION) as writer:  # noqa: PT012
        writer.write(["a"], np.ones((1, DIMENSION), np.float32))
        raise error
    assert list(tmp_path.iterdir()) == ([] if before is None else [path])
    assert before is None or path.read_bytes() == before


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_was_there_is_replaced_at_the_end(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"vectors{suffix}"
    path.write_bytes(b"old")
    with open_writer(path, DIMENSION) as writer:
        writer.write(["a"], np.ones((1, DIMENSION), np.float32))
        assert path.read_bytes() == b"old"
    assert read(path)[1].shape == (1, DIMENSION)


def test_the_file_has_the_mode_of_any_new_file(tmp_path: Path) -> None:
    umask = os.umask(0o027)
    try:
        with open_writer(tmp_path / "v.npy", DIMENSION):
            pass
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "v.npy").stat().st_mode) == 0o640


@pytest.mark.parametrize("name", ["v", "v.txt", "v.NPY", "v.npy.gz", ".npy"])
def test_an_unknown_suffix_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    with (
        pytest.raises(InputError, match=r"must end in one of: \.npy, \.jsonl, \.parquet"),
        open_writer(tmp_path / name, DIMENSION),
    ):
        pass
    assert not any(tmp_path.iterdir())


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match="there is no folder"),
        open_writer(tmp_path / "absent" / "v.npy", DIMENSION),
    ):
        pass


def test_every_suffix_has_a_writer() -> None:
    assert tuple(WRITERS) == SUFFIXES


def test_a_folder_with_the_name_of_a_file_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "v.parquet").mkdir()
    with (
        pytest.raises(InputError, match="is a folder, and its name is one of a file"),
        open_writer(tmp_path / "v.parquet", 3),
    ):
        pytest.fail("the work began")
