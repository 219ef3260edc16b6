"""ONNX Runtime and OpenVINO report to their makers unless kept from it: corom keeps them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Corom = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def stranger(tmp_path: Path) -> dict[str, str]:
    """The environment of a user who has set nothing; what suppresses reports is not in it."""
    return {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}


IDS = ("deviceid", "openvino_ga_cid")
"""The files by which ONNX Runtime and OpenVINO know a user again, written before they report."""


def left_behind(home: Path) -> set[str]:
    """Return the ids that are there, and remove them."""
    found = [path for path in home.rglob("*") if path.name in IDS]
    for path in found:
        path.unlink()
    return {path.name for path in found}


def test_no_command_lets_them(
    corom: Corom,
    one_layer_checkpoint: Path,
    tiny_bundle: Path,
    parity_file: Path,
    stranger: dict[str, str],
    tmp_path: Path,
) -> None:
    pytest.importorskip("openvino", reason="run: pip install 'corom[openvino]'")
    subprocess.run([sys.executable, "-c", "import onnxruntime, openvino"], env=stranger, check=True)
    if left_behind(tmp_path) != set(IDS):
        pytest.skip("these report nothing; run with onnxruntime 1.32 and openvino 2026.4")
    for words in (
        ("embed", tiny_bundle, "头痛怎么办", "-o", tmp_path / "v.npy", "--backend", "openvino"),
        ("verify", tiny_bundle),
        ("export", one_layer_checkpoint, "-o", tmp_path / "made", "--parity-texts", parity_file),
    ):
        done = corom(*words, env=stranger)
        assert done.returncode == 0, done.stderr
        assert not left_behind(tmp_path), words


def test_onnx_runtime_is_told_before_it_is_imported_and_a_users_wish_stays(
    stranger: dict[str, str],
) -> None:
    program = "import os, sys; import corom.runtime.onnx_runtime; print(os.environ[sys.argv[1]])"
    command = [sys.executable, "-c", program, "ORT_DISABLE_TELEMETRY"]
    for given, wanted in (({}, "1"), ({"ORT_DISABLE_TELEMETRY": "0"}, "0")):
        done = subprocess.run(
            command, env=stranger | given, capture_output=True, text=True, check=True
        )
        assert done.stdout == f"{wanted}\n"
