"""golden.npz: any text comes back; a damaged file is a BundleError; nothing is unpickled."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from corom.runtime.errors import BundleError
from corom.runtime.golden import Golden, load_golden, save_golden


@settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.text(max_size=20), min_size=1, max_size=8))
def test_any_text_comes_back(tmp_path: Path, texts: list[str]) -> None:
    vectors = np.random.default_rng(0).normal(size=(len(texts), 3)).astype(np.float32)
    save_golden(tmp_path / "golden.npz", Golden(texts, vectors))
    golden = load_golden(tmp_path / "golden.npz")
    assert golden.texts == texts
    np.testing.assert_array_equal(golden.vectors, vectors)


def npz(**arrays: object) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def npy(array: object) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(array))
    return file.getvalue()


def zipped(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


TEXTS, VECTORS = np.array(["a\n", "b\n"]), np.zeros((2, 3), np.float32)
GOOD = npz(texts=TEXTS, vectors=VECTORS)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"PK\x03\x04 and no more", id="begins like a zip"),
        pytest.param(GOOD[:-30], id="cut short"),
        pytest.param(GOOD[: len(GOOD) // 2], id="half"),
        pytest.param(bytes(b ^ 0x40 for b in GOOD), id="every byte altered"),
        pytest.param(npy(VECTORS), id="one bare array"),
        pytest.param(npz(texts=TEXTS), id="no vectors"),
        pytest.param(npz(vectors=VECTORS), id="no texts"),
        pytest.param(npz(texts=TEXTS, vectors=VECTORS[:1]), id="a vector too few"),
        pytest.param(npz(texts=TEXTS[:0], vectors=VECTORS[:0]), id="nothing"),
        pytest.param(npz(texts=TEXTS, vectors=VECTORS.astype(np.float64)), id="double"),
        pytest.param(npz(texts=TEXTS, vectors=VECTORS[0]), id="one vector"),
        pytest.param(npz(texts=np.arange(2), vectors=VECTORS), id="texts are numbers"),
        pytest.param(npz(texts=np.array(["a", None]), vectors=VECTORS), id="pickled texts"),
        pytest.param(zipped(texts=b"no array", vectors=npy(VECTORS)), id="member is no array"),
        pytest.param(zipped(texts=b"", vectors=b""), id="members are empty"),
    ],
)
def test_a_damaged_file_is_a_bundle_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "golden.npz").write_bytes(content)
    with pytest.raises(BundleError, match=r"golden\.npz"):
        load_golden(tmp_path / "golden.npz")


def test_a_missing_file_is_a_bundle_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be read"):
        load_golden(tmp_path / "golden.npz")


def test_a_pickle_is_never_executed(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (tmp_path / "executed",)

    traps = np.empty(2, object)
    traps[:] = Trap()
    np.savez(tmp_path / "golden.npz", texts=traps, vectors=VECTORS)
    with pytest.raises(BundleError):
        load_golden(tmp_path / "golden.npz")
    assert not (tmp_path / "executed").exists()
