"""Rows out of files of every kind: what is there comes out, what cannot be used says why."""

import csv
import errno
import gzip
import json
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pyarrow as arrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from corom.runtime.corpus import Corpus
from corom.runtime.errors import InputError
from corom.runtime.row import BadRow, Columns, Row
from corom.runtime.rows import read_rows
from corom.runtime.seen_ids import SeenIds

RECORDS = [("a1", "头痛怎么办"), ("a2", ""), ('b,"3', "两行吗\u2028 不是"), ("4", '🤒 "CT" 12mg')]
NAMED = Columns("passage", "pid")


def write_tsv(path: Path, records: list[tuple[str, str]]) -> None:
    lines = ["pid\tpassage", *(f"{key}\t{text}" for key, text in records)]
    path.write_bytes(("\n".join(lines) + "\n").encode())


def write_csv(path: Path, records: list[tuple[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("pid", "passage"), *records])


def write_jsonl(path: Path, records: list[tuple[str, str]]) -> None:
    lines = [json.dumps({"pid": k, "passage": t, "more": 1}) for k, t in records]
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")


def write_parquet(path: Path, records: list[tuple[str, str]]) -> None:
    table = {"pid": [k for k, _ in records], "more": [1.5] * len(records)}
    schema = [("pid", arrow.string()), ("more", arrow.float64()), ("passage", arrow.large_string())]
    parquet.write_table(
        arrow.table(table | {"passage": [t for _, t in records]}, schema=arrow.schema(schema)), path
    )


WRITERS = {
    "tsv": write_tsv,
    "csv": write_csv,
    "jsonl": write_jsonl,
    "parquet": write_parquet,
}
Write = Callable[[Path, list[tuple[str, str]]], None]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("suffix", "write"), WRITERS.items())
def test_every_kind_gives_the_same_rows(
    tmp_path: Path, suffix: str, write: Write, packed: bool
) -> None:
    path = tmp_path / f"corpus.v1.{suffix}"
    write(path, RECORDS)
    if packed:
        zipped = path.with_name(f"{path.name}.gz")
        zipped.write_bytes(gzip.compress(path.read_bytes()))
        path = zipped
    rows = list(read_rows(str(path), NAMED))
    assert [(row.id, row.text) for row in rows] == RECORDS
    numbers = [row.number for row in rows]
    assert numbers == ([1, 2, 3, 4] if suffix in {"jsonl", "parquet"} else [2, 3, 4, 5])
    assert [row.text for row in read_rows(str(path), Columns("passage"))] == [t for _, t in RECORDS]


texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)


@given(st.lists(st.tuples(texts.filter(len), texts), max_size=8), st.sampled_from(list(WRITERS)))
@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
def test_any_text_comes_back(tmp_path: Path, records: list[tuple[str, str]], suffix: str) -> None:
    path = tmp_path / f"any.{suffix}"
    WRITERS[suffix](path, records)
    assert [(row.id, row.text) for row in read_rows(str(path), NAMED)] == records


def test_columns_by_number_need_no_header(tmp_path: Path) -> None:
    path = tmp_path / "corpus.tsv"
    path.write_bytes("7\t头痛\n8\t发\t烧\n9\n10\t咳嗽\n".encode())
    rows = list(read_rows(str(path), Columns("2", "1")))
    assert [rows[0], rows[3]] == [Row(1, "7", "头痛"), Row(4, "10", "咳嗽")]
    assert rows[1] == BadRow(2, "it has 3 fields, the first row has 2")
    assert rows[2] == BadRow(3, "it has 1 fields, column 2 is asked for")
    for column in ("0", "-1"):
        with pytest.raises(InputError, match=f"no column '{column}'"):
            list(read_rows(str(path), Columns(column)))


def test_lines_are_texts(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\n \xff\nlast")
    rows = list(read_rows(str(path), Columns()))
    assert [row.number for row in rows] == [1, 2, 3, 4]
    assert [getattr(row, "text", None) for row in rows] == ["one", "", None, "last"]
    assert "not UTF-8; to convert a file, for example: iconv" in rows[2].reason
    with pytest.raises(InputError, match="read by lines and has no columns"):
        list(read_rows(str(path), Columns("text")))
    assert len(list(read_rows(str(path), Columns("1"), ".tsv"))) == 4


BAD_JSON = [
    ('{"pid": 1, "passage": null}', "its text is null"),
    ('{"pid": 1, "passage": 12}', "its text is int, not a string"),
    ('{"pid": 1, "passage": ["a"]}', "its text is list, not a string"),
    ('{"pid": null, "passage": "a"}', "its id is null"),
    ('{"pid": "", "passage": "a"}', "its id is empty"),
    ('{"pid": true, "passage": "a"}', "its id is bool, not a string"),
    ('{"pid": 1.5, "passage": "a"}', "its id is float, not a string"),
    ('{"pid": 1}', "it has no 'passage'"),
    ("[1]", "it is JSON, but list and no object"),
    ('{"pid": 1, "passage": "a"', "it is no JSON"),
    ("", "it is empty"),
    ("[" * 100_000, "it is no JSON"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_JSON)
def test_a_bad_row_says_why_and_spoils_no_other(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text(
        f'{{"pid": 0, "passage": "a"}}\n{line}\n{{"pid": 2, "passage": "b"}}\n', "utf-8"
    )
    rows = list(read_rows(str(path), NAMED))
    assert [rows[0], rows[2]] == [Row(1, "0", "a"), Row(3, "2", "b")]
    assert isinstance(rows[1], BadRow)
    assert rows[1].number == 2
    assert reason in rows[1].reason


def test_bytes_that_are_no_utf8_spoil_their_row_only(tmp_path: Path) -> None:
    path = tmp_path / "corpus.csv"
    content = 'pid,passage\n1,"好\n的"\n'.encode() + b"2,\xff\xfe\n" + "3,好\n".encode()
    path.write_bytes(content)
    first, bad, last = read_rows(str(path), NAMED)
    assert (first, last) == (Row(2, "1", "好\n的"), Row(5, "3", "好"))
    assert isinstance(bad, BadRow)
    assert "not UTF-8" in bad.reason


def test_fields_that_are_missing_or_too_many(tmp_path: Path) -> None:
    path = tmp_path / "corpus.csv"
    path.write_text('pid,passage\n1\n2,a,b\n\n3,"a"b\n4,a\n', "utf-8")
    rows = list(read_rows(str(path), NAMED))
    reasons = [row.reason for row in rows if isinstance(row, BadRow)]
    assert reasons[:3] == [
        "it has 1 fields, column 2 is asked for",
        "it has 3 fields, the first row has 2",
        "it has 0 fields, column 2 is asked for",
    ]
    assert reasons[3].startswith("it is no CSV")
    assert rows[-1] == Row(6, "4", "a")


def test_nulls_of_parquet_are_bad_rows(tmp_path: Path) -> None:
    path = tmp_path / "corpus.parquet"
    parquet.write_table(arrow.table({"passage": ["a", None, "b"], "pid": [1, 2, None]}), path)
    rows = list(read_rows(str(path), NAMED))
    assert rows == [Row(1, "1", "a"), BadRow(2, "its text is null"), BadRow(3, "its id is null")]


@pytest.mark.parametrize("suffix", list(WRITERS))
def test_a_missing_column_names_those_that_are_there(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"corpus.{suffix}"
    WRITERS[suffix](path, RECORDS)
    for columns in (Columns("body"), Columns("passage", "body"), Columns("2")):
        missing = "2" if columns.text == "2" else "body"
        if suffix in {"tsv", "csv"} and missing == "2":
            continue
        with pytest.raises(InputError, match=f"no column '{missing}'; it has: .*pid.*passage"):
            list(read_rows(str(path), columns))
    with pytest.raises(InputError, match="no column 'text'.*--text-column"):
        list(read_rows(str(path), Columns()))


def test_files_that_are_not_what_their_name_says(tmp_path: Path) -> None:
    path = tmp_path / "corpus.parquet"
    path.write_bytes(b"PAR1 not at all")
    with pytest.raises(InputError, match="no Parquet file that can be read"):
        list(read_rows(str(path), NAMED))
    whole = gzip.compress("".join(f"第{n}行\n" for n in range(10_000)).encode())
    cut = (whole[: len(whole) // 2], whole[:-8] + bytes(8), whole[:10], b"")
    for content in (*cut, b"plain text\n"):
        packed = tmp_path / "corpus.txt.gz"
        packed.write_bytes(content)
        with pytest.raises(InputError, match="damaged or truncated gzip"):
            list(read_rows(str(packed), Columns()))
    for name in ("corpus.xlsx", "corpus.json", "corpus.xlsx.gz"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(InputError, match="of no kind that can be read.*--input-format"):
            list(read_rows(str(tmp_path / name), NAMED))
    with pytest.raises(InputError, match="cannot be read: No such file"):
        list(read_rows(str(tmp_path / "absent.txt"), Columns()))


def test_a_quote_that_is_never_closed_is_an_error_and_no_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "corpus.csv"
    path.write_text('pid,passage\n1,a\n2,"b\n' + "3,c\n" * 1000, "utf-8")
    with pytest.raises(InputError, match="row 3 of .* opens a quote that is not closed"):
        list(read_rows(str(path), NAMED))
    path.write_text('pid,passage\n1,"' + "a\n" * 9_000_000, "utf-8")
    with pytest.raises(InputError, match="row 2 of .* opens a quote that is not closed"):
        list(read_rows(str(path), NAMED))


@pytest.mark.parametrize("suffix", [".tsv", ".csv"])
def test_a_header_that_is_not_utf8_ends_the_job_and_not_its_first_rows(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"corpus{suffix}"
    separator = "\t" if suffix == ".tsv" else ","
    path.write_bytes(f"编号{separator}正文\n1{separator}头痛\n".encode("gb18030"))
    with pytest.raises(InputError, match="the header of .* not UTF-8.*iconv"):
        list(read_rows(str(path), Columns("正文")))


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    csv_file, parquet_file = tmp_path / "a.csv", tmp_path / "a.parquet"
    csv_file.write_text("pid,passage,passage\n1,a,b\n", "utf-8")
    columns = [arrow.array(["1"]), arrow.array(["a"]), arrow.array(["b"])]
    table = arrow.Table.from_arrays(columns, names=["pid", "passage", "passage"])
    parquet.write_table(table, parquet_file)
    for path in (csv_file, parquet_file):
        with pytest.raises(InputError, match="has the column 'passage' more than once"):
            list(read_rows(str(path), NAMED))


def test_bytes_of_parquet_that_are_no_utf8_spoil_their_row_only(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    binary = arrow.array(["好".encode(), b"\xff\xfe", None], arrow.binary())
    texts = arrow.Array.from_buffers(arrow.string(), 3, binary.buffers())
    parquet.write_table(arrow.table({"passage": texts}), path)
    good, bad, null = read_rows(str(path), Columns("passage"))
    assert good == Row(1, None, "好")
    assert isinstance(bad, BadRow)
    assert "not UTF-8" in bad.reason
    assert null == BadRow(3, "its text is null")


def test_suffixes_may_be_in_capitals(tmp_path: Path) -> None:
    (tmp_path / "A.TXT").write_text("好\n", "utf-8")
    assert list(read_rows(str(tmp_path / "A.TXT"), Columns())) == [Row(1, None, "好")]


# --- Many files


def test_globs_are_sorted_and_must_match(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c.md"):
        (tmp_path / name).write_text(f"{name}\n", "utf-8")
    corpus = Corpus([f"{tmp_path}/*.txt"], Columns())
    assert [Path(name).name for name in corpus.names] == ["a.txt", "b.txt"]
    assert [(p.key, p.text) for p in corpus.passages()] == [(0, "a.txt"), (1, "b.txt")]
    with pytest.raises(InputError, match=r"no file matches '.*\*\.csv'"):
        Corpus([f"{tmp_path}/*.csv"], Columns())
    with pytest.raises(InputError, match=r"there is no file '.*absent.txt'"):
        Corpus([f"{tmp_path}/absent.txt"], Columns())
    with pytest.raises(InputError, match=r"a.txt' is given twice"):
        Corpus([f"{tmp_path}/a.txt", f"{tmp_path}/./a.txt"], Columns())
    with pytest.raises(InputError, match=r"a.txt' is given twice"):
        Corpus([f"{tmp_path}/*.txt", f"{tmp_path}/a.txt"], Columns())
    with pytest.raises(InputError, match=r"a.txt' is given twice"):
        Corpus([f"file://{tmp_path}/*.txt", f"{tmp_path}/a.txt"], Columns())


def test_a_file_called_like_standard_input_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("-").write_text("头痛\n", "utf-8")
    corpus = Corpus(["-"], Columns())
    assert not corpus.can_be_read_twice
    assert [(file.name, file.sha256) for file in corpus.files()] == [("-", None)]
    assert Corpus(["./-"], Columns()).can_be_read_twice


def test_an_id_is_there_once_in_all_files(tmp_path: Path) -> None:
    write_tsv(tmp_path / "a.tsv", [("1", "a"), ("2", "b")])
    write_jsonl(tmp_path / "b.jsonl", [("3", "c"), ("1", "d")])
    corpus = Corpus([str(tmp_path / "a.tsv"), str(tmp_path / "b.jsonl")], NAMED)
    *good, last = corpus.passages()
    assert [p.key for p in good] == ["1", "2", "3"]
    assert (last.text, last.reason) == (None, "its id '1' was there before")
    assert str(last.place) == f"row 2 of '{tmp_path / 'b.jsonl'}'"
    survey = corpus.survey()
    assert (survey.rows, survey.bad_rows, survey.first_bad) == (4, 1, last)


def test_a_file_without_the_columns_of_the_others_is_named(tmp_path: Path) -> None:
    write_tsv(tmp_path / "a.tsv", RECORDS)
    (tmp_path / "b.tsv").write_text("key\tpassage\n1\tx\n", "utf-8")
    with pytest.raises(InputError, match=r"b.tsv' has no column 'pid'; it has: key, passage"):
        Corpus([f"{tmp_path}/*.tsv"], NAMED).survey()


def test_ids_are_compared_whole_and_memory_stays_where_it_is() -> None:
    with closing(SeenIds()) as seen:
        assert [seen.add(key) for key in ("a", "b", "a", "A", "", "a\0", "a ", "")] == [
            *(True, True, False, True, True, True, True, False)
        ]
    program = (
        "from corom.benchmarks.peak_memory import peak_bytes\n"
        "from corom.runtime.seen_ids import SeenIds\n"
        "seen, peak = SeenIds(), []\n"
        "for n in range(600_000):\n"
        "    assert seen.add(f'{n * 7919 % 600_011:0150}')\n"
        "    if n in (450_000, 599_999):\n"
        "        peak.append(peak_bytes())\n"
        "assert not seen.add(f'{7919:0150}')\n"
        "print(peak[1] / peak[0])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert float(done.stdout) < 1.1  # 64 MB of ids are in memory by then, 90 in all


def test_a_disk_without_room_for_ids_is_said() -> None:
    with closing(SeenIds()) as seen:
        seen._ids.execute("PRAGMA max_page_count = 3")
        with pytest.raises(OSError, match="full") as raised:
            any(not seen.add(str(number)) for number in range(10_000))
    assert raised.value.errno == errno.ENOSPC
    assert "TMPDIR" in str(raised.value.filename)


def test_another_process_reads_the_same_rows_twice_even_of_a_pipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("头痛\n", "utf-8")
    os.mkfifo("pipe")
    writer = threading.Thread(target=Path("pipe").write_text, args=("发烧\n", "utf-8"))
    writer.start()
    corpus = Corpus(["a.txt", "pipe"], Columns())
    (tmp_path / "elsewhere").mkdir()
    with corpus.for_another_process() as sent:
        writer.join()
        received = pickle.loads(pickle.dumps(sent))  # noqa: S301
        monkeypatch.chdir(tmp_path / "elsewhere")
        for _time in range(2):
            rows = [(str(passage.place), passage.text) for passage in received.passages()]
            assert rows == [("row 1 of 'a.txt'", "头痛"), ("row 1 of 'pipe'", "发烧")]
    with pytest.raises(InputError, match="'pipe' cannot be read"):
        list(received.passages())  # its copy is gone
    monkeypatch.chdir(tmp_path)
    with tempfile.TemporaryFile() as nameless:
        nameless.write("咳嗽\n".encode())
        nameless.seek(0)
        name = f"/dev/fd/{nameless.fileno()}"
        with Corpus([name], Columns()).for_another_process() as sent:
            nameless.seek(0)  # or this process would have read it to its end
            nameless.truncate()
            assert [passage.text for passage in sent.passages()] == ["咳嗽"]
    with Corpus(["a.txt"], Columns()).for_another_process() as sent:
        Path("a.txt").unlink()
        with pytest.raises(InputError, match=r"'a\.txt' cannot be read"):
            list(sent.passages())
