"""Staging: a folder appears whole or not at all, and nothing that was there is lost."""

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from corom.runtime.errors import InputError
from corom.runtime.manifest import MANIFEST_NAME
from corom.runtime.staging import BUNDLE, refuse_occupied, staged

SIGN = BUNDLE.sign.decode()


def content_of(file: Path) -> str:
    """Return what is in a file, but for what makes it a bundle's manifest."""
    return file.read_text().removesuffix(SIGN)


def fill(folder: Path, content: str = "new") -> None:
    """Put what looks like a bundle into a folder."""
    folder.mkdir(exist_ok=True)
    (folder / MANIFEST_NAME).write_text(content + SIGN)


def tree(folder: Path) -> dict[str, str | None]:
    """Return every path below a folder, with the content of the files."""
    return {
        str(path.relative_to(folder)): content_of(path) if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


@pytest.mark.parametrize("output", ["bundle", "new/folders/bundle", "empty"])
def test_what_is_staged_is_published(tmp_path: Path, output: str) -> None:
    if output == "empty":
        (tmp_path / "empty").mkdir()
    with staged(tmp_path / output, overwrite=False) as staging:
        assert staging.parent == (tmp_path / output).parent
        assert not (tmp_path / output / MANIFEST_NAME).exists()
        fill(staging)
    assert [path for path, content in tree(tmp_path).items() if content == "new"] == [
        f"{output}/{MANIFEST_NAME}"
    ]
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.usefixtures("umask")
def test_the_folder_has_the_mode_of_any_new_folder(tmp_path: Path) -> None:
    with staged(tmp_path / "bundle", overwrite=False) as staging:
        fill(staging)
    assert stat.S_IMODE((tmp_path / "bundle").stat().st_mode) == 0o750


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, OSError])
@pytest.mark.parametrize("output", ["bundle", "new/folders/bundle"])
def test_after_an_error_all_is_as_before(
    tmp_path: Path, error: type[BaseException], output: str
) -> None:
    with pytest.raises(error), staged(tmp_path / output, overwrite=False) as staging:  # noqa: PT012
        fill(staging)
        (staging / "onnx").mkdir()
        raise error
    assert tree(tmp_path) == {}


def test_folders_that_others_use_meanwhile_stay(tmp_path: Path) -> None:
    with pytest.raises(ValueError), staged(tmp_path / "new" / "bundle", overwrite=False):  # noqa: PT011,PT012
        (tmp_path / "new" / "other").touch()
        raise ValueError
    assert tree(tmp_path) == {"new": None, "new/other": ""}


@pytest.mark.parametrize("kind", ["folder", "file", "link", "dangling link"])
def test_what_is_there_is_refused_before_the_work(tmp_path: Path, kind: str) -> None:
    output = tmp_path / "output"
    if kind == "folder":
        fill(output, "old")
    elif kind == "file":
        output.write_text("old")
    else:
        output.symlink_to(tmp_path if kind == "link" else tmp_path / "absent")
    before = tree(tmp_path)
    with (
        pytest.raises(InputError, match="exists. Choose another folder"),
        staged(output, overwrite=False),
    ):
        pytest.fail("the work began")
    assert tree(tmp_path) == before


def test_the_second_of_two_is_discarded(tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    with (  # noqa: PT012
        pytest.raises(InputError, match="another process published .* first"),
        staged(output, overwrite=False) as second,
    ):
        with staged(output, overwrite=False) as first:
            fill(first, "first")
        fill(second, "second")
    assert tree(tmp_path) == {"bundle": None, f"bundle/{MANIFEST_NAME}": "first"}


@pytest.mark.parametrize("kind", ["bundle", "empty folder", "nothing", "link to a bundle"])
def test_overwrite_replaces_a_bundle(tmp_path: Path, kind: str) -> None:
    output = tmp_path / "bundle"
    if kind == "bundle":
        fill(output, "old")
        (output / "more").touch()
    elif kind == "empty folder":
        output.mkdir()
    elif kind == "link to a bundle":
        (tmp_path / "elsewhere").mkdir()
        fill(tmp_path / "elsewhere" / "bundle", "old")
        output.symlink_to(tmp_path / "elsewhere" / "bundle")
    with staged(output, overwrite=True) as staging:
        fill(staging)
    assert tree(output) == {MANIFEST_NAME: "new"}
    assert not list(tmp_path.glob(".*"))
    if kind == "link to a bundle":
        assert content_of(tmp_path / "elsewhere" / "bundle" / MANIFEST_NAME) == "old"


@pytest.mark.parametrize("kind", ["folder of other things", "file", "link to a file"])
def test_overwrite_replaces_nothing_but_a_bundle(tmp_path: Path, kind: str) -> None:
    output = tmp_path / "output"
    if kind == "folder of other things":
        output.mkdir()
        (output / "thesis.txt").write_text("precious")
    elif kind == "file":
        output.write_text("precious")
    else:
        (tmp_path / "thesis.txt").write_text("precious")
        output.symlink_to(tmp_path / "thesis.txt")
    before = tree(tmp_path)
    with (
        pytest.raises(InputError, match="is not a bundle, and --overwrite replaces nothing else"),
        staged(output, overwrite=True),
    ):
        pytest.fail("the work began")
    assert tree(tmp_path) == before


def test_overwrite_keeps_the_old_bundle_until_the_new_is_whole(tmp_path: Path) -> None:
    fill(tmp_path / "bundle", "old")
    with pytest.raises(ValueError), staged(tmp_path / "bundle", overwrite=True) as staging:  # noqa: PT011,PT012
        fill(staging)
        assert content_of(tmp_path / "bundle" / MANIFEST_NAME) == "old"
        raise ValueError
    assert tree(tmp_path) == {"bundle": None, f"bundle/{MANIFEST_NAME}": "old"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_when_the_second_rename_fails_the_old_bundle_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    fill(tmp_path / "bundle", "old")
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if self.suffix == ".partial":
            raise error
        return rename(self, target)

    with pytest.raises(error), staged(tmp_path / "bundle", overwrite=True) as staging:  # noqa: PT012
        fill(staging)
        monkeypatch.setattr(Path, "rename", interrupted)
    assert tree(tmp_path) == {"bundle": None, f"bundle/{MANIFEST_NAME}": "old"}


def test_a_folder_that_cannot_be_made_leaves_no_parents(tmp_path: Path) -> None:
    output = tmp_path / "new" / ("x" * 250)
    with pytest.raises(OSError, match="name too long"), staged(output, overwrite=False):
        pytest.fail("the work began")
    assert tree(tmp_path) == {}


def test_the_current_folder_can_be_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with staged(Path(), overwrite=False) as staging:
        fill(staging)
    assert tree(tmp_path) == {"here": None, f"here/{MANIFEST_NAME}": "new"}


def test_a_staging_folder_that_vanished_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), staged(tmp_path / "bundle", overwrite=False) as staging:
        shutil.rmtree(staging)
    assert tree(tmp_path) == {}


def test_overwrite_spares_a_folder_with_somebody_elses_manifest(tmp_path: Path) -> None:
    output = tmp_path / "extension"
    output.mkdir()
    (output / MANIFEST_NAME).write_text('{"manifest_version": 3, "name": "mine"}')
    with (
        pytest.raises(InputError, match="is not a bundle, and --overwrite replaces nothing else"),
        staged(output, overwrite=True),
    ):
        pytest.fail("the work began")
    assert (output / MANIFEST_NAME).exists()


def test_overwrite_looks_again_before_it_replaces(tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    with (  # noqa: PT012
        pytest.raises(InputError, match="is not a bundle"),
        staged(output, overwrite=True) as staging,
    ):
        fill(staging)
        output.mkdir()
        (output / "thesis.txt").write_text("precious")
    assert tree(output) == {"thesis.txt": "precious"}


def test_a_mount_point_is_refused_before_the_work() -> None:
    with pytest.raises(InputError, match=r"'/proc' is a mount point.*'/proc/bundle'"):
        refuse_occupied(Path("/proc"), overwrite=True)
