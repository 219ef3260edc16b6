"""What a figure was measured on: processor, threads, versions, commit."""

import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from corom.runtime.cpus import available_cpus, cpu_model
from corom.runtime.packages import installed_version

PACKAGES = (
    "corom", "cuda-bindings", "numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "starlette",
    "tokenizers", "torch", "transformers", "uvicorn",
)  # fmt: skip


HERE = Path(__file__).resolve().parent
CODE = (
    "../runtime",
    "../export",
    "../models",
    "../pyproject.toml",
    "../setup.py",
    ".",
    ":!results",
)
"""What figures depend on, from this folder; those that were written before do not count."""


@cache
def describe_machine() -> dict[str, Any]:
    """Return what makes a figure comparable, ready for JSON; found once, by the first call.

    Call it before anything is measured: the checkout may have changed by the end.
    """
    return {
        "cpu": cpu_model(),
        "cpus": available_cpus(),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := installed_version(name))},
        **checkout(HERE),
    }


def checkout(folder: Path) -> dict[str, str | None]:
    """Return the commit of the checkout that benchmarks' ``folder`` is in, and its tree.

    "commit" ends in "-dirty" if code was changed or added since. "tree" names the content: it finds
    the code again where the commit was not kept. None for what is no checkout of corom's.
    """
    if not _git(folder, "ls-files", "machine.py"):  # installed, perhaps below another repository
        return {"commit": None, "tree": None}
    changed = _git(folder, "status", "--porcelain", "--untracked-files=all", "--", *CODE)
    return {
        "commit": _git(folder, "rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else ""),
        "tree": _git(folder, "rev-parse", "--short=12", "HEAD^{tree}"),
    }


def _git(folder: Path, *words: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=False
        )
    except OSError:  # no git here
        return ""
    return done.stdout.strip()
