"""What pyproject.toml cannot say: the package's page, and the kernels of backend "native"."""

import platform
import re
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup

README = Path(__file__).with_name("README.md").read_text("utf-8")
PAGE = re.sub(r"\[([^\]]+)\]\((?!https?:)([^)\s]+)\)", r"\1 (`\2`)", README)
"""README.md, its links into the repository as the names of files there."""

NATIVE = Path("runtime/native")
BUILDS = {
    "avx512": [
        "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512",
        # GCC 12 says so of its own headers.
        "-Wno-uninitialized", "-Wno-maybe-uninitialized",
    ],
    "avx2": ["-mavx2", "-mno-avx512f"],  # the other says what of AVX-512, whatever CFLAGS have
}  # fmt: skip
KERNELS = [
    Extension(
        f"corom.runtime._native_{name}",
        sources=[str(NATIVE / f"{name}.cpp")],
        depends=["setup.py", *(str(path) for path in sorted(NATIVE.glob("*.h")))],
        language="c++",
        extra_compile_args=[
            "-std=c++20", "-O3", "-g0", "-pthread", "-mfma", "-fno-math-errno", *flags,
        ],
        extra_link_args=["-pthread", "-static-libstdc++", "-static-libgcc"],
        py_limited_api=True,  # they do not call Python at all: ctypes opens them
        optional=True,  # without a compiler everything else works, and the backend says why not
    )
    for name, flags in BUILDS.items()
]  # fmt: skip
HERE = (
    sys.platform == "linux"
    and platform.machine() == "x86_64"
    and not sysconfig.get_config_var("Py_GIL_DISABLED")  # such a Python has no stable interface
)

setup(
    long_description=PAGE,
    long_description_content_type="text/markdown",
    ext_modules=KERNELS if HERE else [],
    options={"bdist_wheel": {"py_limited_api": "cp311"}, "build_ext": {"parallel": 2}}
    if HERE
    else {},
)
