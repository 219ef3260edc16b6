"""The documents are true: their blocks of Python and shell run, in order, as a reader runs them."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from documents import DOCUMENTS, ROOT, Block, Document, document

RUNNER = Path(__file__).with_name("run_blocks.py")
ADDRESS = "http://127.0.0.1:3000"
"""Where the documents say that the server is."""
# What works on the repository rather than in it, or makes the demo anew.
NOT_HERE = re.compile(r"^(make|pip|git|cd) ", re.MULTILINE)


def runs(block: Block) -> bool:
    known = block.language in {"python", "sh"}
    return known and not block.skipped and not NOT_HERE.search(block.code)


def runnable() -> list[Document]:
    """The documents with something to run. README.zh.md has README.md's code, which is tested."""
    return [d for d in DOCUMENTS if any(map(runs, d.blocks)) and d.name != "README.zh.md"]


def with_shapes(code: str) -> str:
    """Return Python that also checks the shapes which its comments state.

    ``name = …  # (2, 512)`` and ``expression  # (3, 512)``.
    """
    lines = []
    for line in code.splitlines():
        lines.append(line)
        if found := re.match(r"\s*(?:(\w+) = |(\w+\[.+?\]) ).*#.*?(\([\d, ]+\))", line):
            indent = line[: len(line) - len(line.lstrip())]
            value = found[1] or found[2]
            lines.append(f"{indent}assert ({value}).shape == {found[3]}, {line.strip()!r}")
    return "\n".join(lines)


@pytest.fixture
def place(tmp_path: Path, demo_bundle: Path) -> Path:
    """A folder where ``bundles/demo`` is the demo bundle."""
    (tmp_path / "bundles").mkdir()
    (tmp_path / "bundles" / "demo").symlink_to(demo_bundle, target_is_directory=True)
    return tmp_path


@pytest.mark.parametrize("document", runnable(), ids=repr)
def test_the_blocks_of_a_document_run(
    document: Document,
    place: Path,
    shell: Callable[..., subprocess.CompletedProcess[str]],
    request: pytest.FixtureRequest,
) -> None:
    blocks = [block for block in document.blocks if runs(block)]
    if any(ADDRESS in block.code for block in blocks):
        address = request.getfixturevalue("served_demo")
        blocks = [b._replace(code=b.code.replace(ADDRESS, str(address))) for b in blocks]
    jobs = [
        {
            "language": block.language,
            "code": with_shapes(block.code) if block.language == "python" else block.code,
            "place": f"{document.name}:{block.line}",
        }
        for block in blocks
    ]
    # Hugging Face's client takes "offline" to mean a server on this machine as well.
    line = f"unset HF_HUB_OFFLINE; python -W error {RUNNER}"
    done = shell(line, cwd=place, input=json.dumps(jobs))
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_is_something_to_run_and_shapes_to_check() -> None:
    blocks = [block for block in document("README.md").blocks if runs(block)]
    assert {block.language for block in blocks} == {"python", "sh"}
    python = [block.code for block in blocks if block.language == "python"]
    assert sum(with_shapes(code).count(".shape ==") for code in python) >= 4
    with pytest.raises(AssertionError):
        exec(with_shapes("import numpy\nv = numpy.zeros(3)  # (4,)"))


def test_every_make_target_in_the_documents_exists() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    named = [
        target
        for d in DOCUMENTS
        for line, _ in [*d.lines("sh"), *((word, 0) for word in d.words)]
        for target in re.findall(r"^make ([a-z-]+)", line)
    ]
    assert named
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
