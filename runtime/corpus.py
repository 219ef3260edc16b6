"""A corpus: the rows of many files one after another, checked before anything is computed.

Knows files and rows; no encoder, no output.
"""

import copy
import glob
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import msgspec

from .errors import InputError
from .manifest import sha256_of
from .row import BadRow, Columns, Row
from .rows import STDIN, open_bytes, read_rows
from .seen_ids import SeenIds
from .stores import place_of
from .urls import is_url, matching_urls, measure_url, without_secrets


class InputFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of a corpus; standard input has neither hash nor size."""

    name: str
    sha256: str | None
    size_bytes: int | None


class Place(NamedTuple):
    """Where a row stands."""

    file: str
    number: int

    def __str__(self) -> str:
        return f"row {self.number} of '{self.file}'"


class Passage(NamedTuple):
    """A row of the corpus: ``key`` is its id, or without an id column its place in the corpus.

    ``text``: None if it cannot be used; ``reason`` says why then.
    """

    place: Place
    key: str | int
    text: str | None
    reason: str


class Survey(NamedTuple):
    """What was found when all rows were read once."""

    rows: int
    bad_rows: int
    first_bad: Passage | None


class Corpus:
    """The rows of files in the order of their names; several patterns keep their own order.

    ``kind``: a suffix such as ".tsv" to read every file by. Raises ``InputError`` for a pattern
    that matches nothing, and when rows are read for a file that cannot be.
    """

    def __init__(self, patterns: Sequence[str], columns: Columns, kind: str | None = None) -> None:
        self.columns, self.kind = columns, kind
        self._paths: dict[str, str] = {}
        """Where a file is read that is not read by its name."""
        self.names = [name for pattern in patterns for name in _matching(pattern)]
        places = [name if is_url(name) else os.path.realpath(name) for name in self.names]
        if len(set(places)) < len(places):
            twice = next(n for n, p in zip(self.names, places, strict=True) if places.count(p) > 1)
            raise InputError(f"'{twice}' is given twice.")

    @property
    def can_be_read_twice(self) -> bool:
        """Whether rows may be read before the work: not from standard input or a pipe."""
        return all(is_url(name) or _is_file(name) for name in self.names)

    def refuse_as_output(self, output: Path) -> None:
        """Raise ``InputError`` if writing there would overwrite an input."""
        for name in self.names:
            path = Path(name)
            inside = output.is_dir() and path.resolve().is_relative_to(output.resolve())
            if path.is_file() and (inside or (output.exists() and output.samefile(path))):
                raise InputError(f"'{output}' would overwrite the input '{name}'. Write elsewhere.")

    def files(self) -> tuple[InputFile, ...]:
        """Return the files with their hashes."""
        return tuple(map(_described, self.names))

    def passages(self) -> Iterator[Passage]:
        """Yield every row; an id that was there before makes a row unusable."""
        position = 0
        with closing(SeenIds()) as seen:
            for name in self.names:
                path = self._paths.get(name, name)
                for row in read_rows(name, self.columns, self.kind, path):
                    yield _passage(Place(name, row.number), position, row, seen)
                    position += 1

    @contextmanager
    def for_another_process(self) -> Iterator["Corpus"]:
        """Yield this corpus as any process of this machine can read it, more than once too.

        That is by absolute paths; what can be read only once is copied below ``TMPDIR``.
        """
        corpus = copy.copy(self)
        lasting = {name: name if is_url(name) else _lasting_path(name) for name in self.names}
        once = [name for name, path in lasting.items() if path is None]
        with TemporaryDirectory(prefix="corom-") if once else nullcontext("") as folder:
            copies = {name: _copied(name, Path(folder, str(k))) for k, name in enumerate(once)}
            corpus._paths = {name: path or copies[name] for name, path in lasting.items()}
            yield corpus

    def survey(self, advance: Callable[[int], None] = lambda _rows: None) -> Survey:
        """Read every row once; ``advance`` is told how many rows were read since it was told."""
        rows = bad_rows = 0
        first_bad = None
        for passage in self.passages():
            rows += 1
            if passage.text is None:
                bad_rows += 1
                first_bad = first_bad or passage
            if rows % 8192 == 0:
                advance(8192)
        advance(rows % 8192)
        return Survey(rows, bad_rows, first_bad)


def _is_file(name: str) -> bool:
    """Return whether this is a file; not standard input, a pipe, or what is not there."""
    return name != STDIN and Path(name).is_file()


def _lasting_path(name: str) -> str | None:
    """Return where any process can read a file, and again; None for a pipe.

    /dev/stdin may be a file that has no name any more.
    """
    path = os.path.realpath(name)
    return path if _is_file(name) and Path(path).exists() and Path(path).samefile(name) else None


def _copied(name: str, path: Path) -> str:
    """Copy what can be read only once, and return the path of the copy."""
    try:
        source = open_bytes(name)
    except OSError as error:
        raise InputError(f"'{name}' cannot be read: {error.strerror}.") from None
    try:
        with source as file, path.open("wb") as target:
            shutil.copyfileobj(file, target)
    except OSError as error:
        raise InputError(f"'{name}' cannot be copied to '{path}': {error.strerror}.") from None
    return str(path)


def _matching(pattern: str) -> list[str]:
    """Return the files that a name or glob pattern stands for, sorted; "-" is standard input."""
    if is_url(pattern):
        pattern = str(place_of(pattern))  # what file:// names is a path, and guarded as one
    if pattern != STDIN and Path(pattern).is_dir():
        raise InputError(f"'{pattern}' is a folder. Give its files: '{Path(pattern) / '*.jsonl'}'.")
    if pattern == STDIN or Path(pattern).exists():
        return [pattern]
    if is_url(pattern):
        return matching_urls(pattern)
    matches = glob.glob(pattern, recursive=True)  # noqa: PTH207  # Path has none from the root
    found = sorted(name for name in matches if Path(name).is_file())
    if not found:
        what = "no file matches" if glob.has_magic(pattern) else "there is no file"
        raise InputError(f"{what} '{pattern}'.")
    return found


def _described(name: str) -> InputFile:
    shown = printable(name)
    if is_url(name):
        digest, size = measure_url(name)
        return InputFile(name=shown, sha256=digest, size_bytes=size)
    if not _is_file(name):
        return InputFile(name=shown, sha256=None, size_bytes=None)
    try:
        size = Path(name).stat().st_size
        return InputFile(name=shown, sha256=sha256_of(Path(name)), size_bytes=size)
    except OSError as error:
        raise InputError(f"'{name}' cannot be read: {error.strerror}.") from None


def printable(name: str) -> str:
    """Return a file name for a record: in UTF-8, which names need not be, and without secrets."""
    if is_url(name):
        return without_secrets(name)
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _passage(place: Place, position: int, row: Row | BadRow, seen: SeenIds) -> Passage:
    if isinstance(row, BadRow):
        return Passage(place, position, None, row.reason)
    if row.id is None:
        return Passage(place, position, row.text, "")
    if not seen.add(row.id):
        return Passage(place, position, None, f"its id '{row.id}' was there before")
    return Passage(place, row.id, row.text, "")
