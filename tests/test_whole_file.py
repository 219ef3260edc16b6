"""Files that appear whole or not at all, whenever their writer is stopped."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from corom.runtime.whole_file import whole_file


@pytest.mark.parametrize("partial", [None, "partial"])
@pytest.mark.parametrize("error", [SystemExit(143), KeyboardInterrupt(), ValueError()])
def test_stopped_while_writing_it_leaves_what_was_there(
    tmp_path: Path, partial: str | None, error: BaseException
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with (  # noqa: PT012  # what is stopped is the block
        pytest.raises(type(error)),
        whole_file(path, partial=partial and tmp_path / partial) as file,
    ):
        file.write(b"half")
        raise error
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("file", b"before")]


def test_stopped_while_the_file_is_opened_it_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal may come when the file is there and nobody has its handle yet."""
    partial, opened = tmp_path / "partial", Path.open

    def stopped(self: Path, *arguments: object, **options: object) -> object:
        opened(self, *arguments, **options).close()  # type: ignore[call-overload]
        raise SystemExit(143)

    monkeypatch.setattr(Path, "open", stopped)
    with pytest.raises(SystemExit), whole_file(tmp_path / "file", partial=partial):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("sync", [False, True])
def test_it_gets_its_name_when_it_is_whole(tmp_path: Path, sync: bool) -> None:
    path, partial = tmp_path / "file", tmp_path / "partial"
    partial.write_bytes(b"left by one that was killed, and longer")
    with whole_file(path, partial=partial, sync=sync) as file:
        file.write(b"whole")
        file.flush()
        assert not path.exists()
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("file", b"whole")]


def test_a_pipe_is_written_and_stays_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit((tmp_path / "pipe").read_bytes)
        with whole_file(tmp_path / "pipe") as file:
            file.write(b"rows")
        assert read.result(30) == b"rows"
    assert (tmp_path / "pipe").is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_what_is_no_file_is_written_through_its_link_too(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path\n"
        "from corom.runtime.whole_file import whole_file\n"
        "with whole_file(Path('/dev/stdout')) as file:\n    file.write(b'text')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, b"text"), done.stderr
    assert not any(tmp_path.iterdir())


def test_what_a_link_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for content in (b"old", b"new"):
        with whole_file(tmp_path / "link") as file:
            file.write(content)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "file").read_bytes() == content
