"""Builds the stand-in driver for the test files that need it."""

import shutil
import subprocess
from pathlib import Path

import pytest


def build_fake_driver(folder: Path) -> Path:
    """Return ``folder``, with the stand-in libcuda.so.1 in it."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to build the stand-in driver with")
    source = Path(__file__).parent / "fake_driver.c"
    flags = ["-O1", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-pthread"]
    command = [compiler, *flags, "-o", str(folder / "libcuda.so.1"), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return folder
