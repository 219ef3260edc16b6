"""README.md is true: every block of Python and shell runs, every file it names is there."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from corom.export.recipe import recipe_names
from corom.runtime.cli import COMMANDS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("*/*.md")])
BLOCK = re.compile(
    r"(?P<skipped><!-- not run: [^>]+ -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """A block of code in README.md."""

    language: str
    code: str
    line: int


BLOCKS = [
    Block(found["language"], found["code"], README[: found.start("code")].count("\n") + 1)
    for found in BLOCK.finditer(README)
    if not found["skipped"]
]
# What works on the repository rather than in it, or makes the demo anew.
NOT_HERE = re.compile(r"^(make|pip|git|cd) ", re.MULTILINE)


def blocks(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


def identify(block: Block) -> str:
    return f"line {block.line}"


@pytest.fixture
def place(tmp_path: Path, demo_bundle: Path) -> Path:
    """A folder where ``bundles/demo`` is the demo bundle."""
    (tmp_path / "bundles").mkdir()
    (tmp_path / "bundles" / "demo").symlink_to(demo_bundle, target_is_directory=True)
    return tmp_path


def test_there_is_something_to_run() -> None:
    assert blocks("python")
    assert blocks("sh")


@pytest.fixture(scope="module")
def vectors(
    shell: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path_factory: pytest.TempPathFactory,
    demo_bundle: Path,
) -> Path:
    """The folder of vectors that the shell of README.md makes, which its Python opens."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "bundles").mkdir()
    (folder / "bundles" / "demo").symlink_to(demo_bundle, target_is_directory=True)
    (block,) = (block for block in blocks("sh") if "-o vectors\n" in block.code)
    done = shell(f"set -e\n{block.code}", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "vectors"


@pytest.fixture
def place_with_vectors(place: Path, vectors: Path) -> Path:
    """``place``, with what the shell of README.md left there."""
    (place / "vectors").symlink_to(vectors, target_is_directory=True)
    return place


@pytest.mark.parametrize("block", blocks("python"), ids=identify)
def test_python_in_the_readme_runs(
    shell: Callable[..., subprocess.CompletedProcess[str]], place_with_vectors: Path, block: Block
) -> None:
    place = place_with_vectors
    (place / "block.py").write_text(block.code, "utf-8")
    done = shell("python -W error block.py", cwd=place)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", blocks("sh"), ids=identify)
def test_shell_in_the_readme_runs(
    shell: Callable[..., subprocess.CompletedProcess[str]], place: Path, block: Block
) -> None:
    if NOT_HERE.search(block.code):
        targets = re.findall(r"^make (\S+)", block.code, re.MULTILINE)
        makefile = (ROOT / "Makefile").read_text("utf-8")
        assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
        return
    done = shell(f"set -e\n{block.code}", cwd=place)
    assert done.returncode == 0, done.stderr


def test_shapes_in_comments_of_the_readme_are_true(
    shell: Callable[..., subprocess.CompletedProcess[str]], place_with_vectors: Path
) -> None:
    """``name = …  # (2, 512)`` and ``expression  # (3, 512)``: what is computed has that shape."""
    checked, place = 0, place_with_vectors
    for block in blocks("python"):
        code = [block.code]
        for line in block.code.splitlines():
            found = re.match(r"\s*(?:(\w+) = |(\w+\[.+?\]) ).*#.*?(\([\d, ]+\))", line)
            if found:
                code.append(f"assert ({found[1] or found[2]}).shape == {found[3]}, {line!r}")
                checked += 1
        (place / "block.py").write_text("\n".join(code), "utf-8")
        done = shell("python block.py", cwd=place)
        assert done.returncode == 0, done.stderr
    assert checked


def test_every_command_in_the_documents_exists() -> None:
    for document in DOCUMENTS:
        text = document.read_text("utf-8")
        shell_code = "\n".join(b["code"] for b in BLOCK.finditer(text) if b["language"] == "sh")
        named = re.findall(r"(?:^|\| )corom (\w+)", shell_code, re.MULTILINE)
        for name in named + re.findall(r"`corom (\w+)", text):
            assert name in COMMANDS, f"{document.name}: corom {name}"


def test_every_file_in_the_tree_of_the_readme_is_there() -> None:
    (tree,) = (b for b in BLOCKS if not b.language and "runtime/" in b.code)
    names = [line.split()[0] for line in tree.code.splitlines() if line.strip()]
    assert names
    for name in names:
        assert (ROOT / name.strip("─├└│ ")).exists(), name


def test_every_python_file_named_in_the_readme_is_there() -> None:
    folder = None
    for line in README.splitlines():
        for half in re.findall(r"`(runtime|export|benchmarks)/\w+\.py`", line):
            folder = half
        for name in re.findall(r"`((?:\w+/)?\w+\.py)`", line):
            path = ROOT / name if "/" in name else ROOT / (folder or "") / name
            assert path.is_file(), name


def test_every_module_of_the_runtime_and_the_exporter_is_in_the_map_or_helps_one_that_is() -> None:
    """The map may leave out the command line and small helpers, but no stage of the two ways."""
    for name in ("encoder", "tokens", "batching", "backend", "vectors", "manifest"):
        assert f"{name}.py" in README, name
    for name in ("recipe", "sources", "checkpoint", "reference", "graph", "staging", "parity"):
        assert f"{name}.py" in README, name


def test_every_link_in_the_documents_leads_somewhere() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text("utf-8")):
            if not target.startswith(("http:", "https:", "mailto:")):
                assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_every_recipe_named_in_the_documents_exists() -> None:
    for document in DOCUMENTS:
        for name in re.findall(r"corom export (\S+)", document.read_text("utf-8")):
            plain = not name.startswith((".", "-", "modelscope:", "hf:")) and not name.endswith(
                ".toml"
            )
            assert not plain or name.strip("`.,") in recipe_names() or name.isupper(), name
