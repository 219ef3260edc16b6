"""schemathesis against the server's own OpenAPI document: whatever it sends, no 5xx."""

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from corom.benchmarks.http_server import Server, corom_command

SHORT_SECONDS = 8
LONG_SECONDS = 600


@pytest.fixture(scope="module")
def tested(tiny_bundle: Path) -> Iterator[Server]:
    """A server that must have nothing to report of itself once all is over."""
    with Server(corom_command(tiny_bundle, ["--payload-limit", "200000"]), {}) as server:
        yield server
        said = server.said()
        assert server.close() == 0
    assert "Traceback" not in said, said[-5000:]
    assert "a bug in corom" not in said, said[-5000:]


def run(server: Server, place: Path, seconds: int, *words: str) -> str:
    """Return what schemathesis says after so many seconds of requests; it must find nothing.

    What the document admits may still be refused (a model that is not served, token ids that the
    vocabulary does not have), so ``positive_data_acceptance`` is no check of this server.
    """
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"]
    command += ["--max-time", str(seconds), "--exclude-checks", "positive_data_acceptance"]
    done = subprocess.run(
        [*command, "--continue-on-failure", "--no-color", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=place,
        env=os.environ | {"COLUMNS": "100"},
        timeout=seconds + 120,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    return done.stdout


def operations(server: Server) -> int:
    """Return how many the document has; what serves the document itself is left out of them."""
    with urllib.request.urlopen(f"{server.url}/openapi.json", timeout=30) as answer:
        paths = json.load(answer)["paths"]
    del paths["/openapi.json"]
    return sum(method in {"get", "post"} for item in paths.values() for method in item)


def test_the_document_is_kept_for_seconds(tested: Server, tmp_path: Path) -> None:
    said = run(tested, tmp_path, SHORT_SECONDS, "--phases", "coverage,fuzzing")
    count = operations(tested)
    assert f"Selected: {count}/{count}" in said


@pytest.mark.slow
@pytest.mark.timeout(LONG_SECONDS + 200)
def test_the_document_is_kept_for_ten_minutes(tested: Server, tmp_path: Path) -> None:
    before = tested.usage().rss_bytes
    said = run(tested, tmp_path, LONG_SECONDS)
    assert f"Tested: {operations(tested)}" in said
    assert tested.usage().rss_bytes - before < 150_000_000
