"""A line of the server's log for machines: what its two processes write alike."""

import time

import msgspec


def json_line(stamp: float, level: str, target: str, message: str, **fields: object) -> str:
    """Return one JSON object; ``stamp``: seconds since the epoch."""
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(stamp))
    line = {
        "timestamp": f"{seconds}.{int(stamp % 1 * 1000):03d}Z",
        "level": level,
        "target": target,
        "message": message,
    }
    return msgspec.json.encode(line | fields).decode()
