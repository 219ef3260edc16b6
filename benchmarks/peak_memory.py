"""The peak memory of a process, as it tells itself.

A parent is told ``ru_maxrss``, which on Linux begins with the parent's own peak: a child of a large
process seems as large, and its growth below that is not seen.
"""

import os
import resource
import sys
from pathlib import Path

COMMAND = (
    "import atexit, sys; from corom.benchmarks.peak_memory import tell; "
    "atexit.register(tell, int(sys.argv.pop(1))); from corom.runtime.cli import main; main()"
)
"""A program for ``python -c``, given a descriptor and then the words of ``corom``."""


def peak_bytes() -> int:
    """Return the most memory that this process has had."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def tell(descriptor: int) -> None:
    """Write the peak there, to be read at the end of the process."""
    os.write(descriptor, str(peak_bytes()).encode())
