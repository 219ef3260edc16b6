"""What a figure was measured on: processor, threads, versions, commit."""

import platform
import subprocess
from pathlib import Path
from typing import Any

from corom.runtime.cpus import available_cpus, cpu_model
from corom.runtime.packages import installed_version

PACKAGES = (
    "corom", "numpy", "onnxruntime", "openvino", "starlette", "tokenizers", "torch",
    "transformers", "uvicorn",
)  # fmt: skip


def describe_machine() -> dict[str, Any]:
    """Return what makes a figure comparable, ready for JSON."""
    return {
        "cpu": cpu_model(),
        "cpus": available_cpus(),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := installed_version(name))},
        "commit": _commit(),
    }


def _commit() -> str | None:
    """Return the commit of the checkout this file is in, with "-dirty" if it was changed."""
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
