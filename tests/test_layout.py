"""The layout: what each half may import, read from the source itself."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HALVES = ("benchmarks", "export", "models", "runtime")
SOURCES = sorted(path for half in HALVES for path in (ROOT / half).glob("*.py"))
TESTS = sorted((ROOT / "tests").glob("*.py"))
RUNTIME = sorted((ROOT / "runtime").glob("*.py"))
EXPORT = sorted((ROOT / "export").glob("*.py"))


def identify(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the modules that a file imports, absolute, with the line."""
    package = ["corom", path.parent.name]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names)


def test_the_top_level_folders_are_there() -> None:
    for name in (*HALVES, "tests", "README.md", "Makefile", "LICENSE", "pyproject.toml", ".ci/run"):
        assert (ROOT / name).exists(), name


def test_there_are_no_sub_packages() -> None:
    """One that is not listed in pyproject.toml would silently be left out of the wheel."""
    for half in HALVES:
        folders = [p.name for p in (ROOT / half).iterdir() if p.is_dir()]
        assert set(folders) <= {"__pycache__", "results", "native"}, half
    assert not list((ROOT / "runtime" / "native").glob("*.py"))


@pytest.mark.parametrize("path", RUNTIME, ids=identify)
def test_the_runtime_never_imports_the_heavy_half(path: Path) -> None:
    banned = ("torch", "transformers", "onnx", "onnxscript", "safetensors", "huggingface_hub")
    for name, line in imports(path):
        assert name.split(".")[0] not in banned, f"{path.name}:{line} imports {name}"
        for half in ("corom.export", "corom.benchmarks", "corom.models"):
            assert not f"{name}.".startswith(f"{half}."), f"{path.name}:{line} imports {name}"


@pytest.mark.parametrize("path", SOURCES, ids=identify)
def test_onnx_runtime_comes_from_the_module_that_silences_it(path: Path) -> None:
    if path.name not in ("onnx_runtime.py", "peer_worker.py"):  # of peers, silenced by who runs it
        for name, line in imports(path):
            assert name.split(".")[0] != "onnxruntime", f"{path.name}:{line} imports {name}"


@pytest.mark.parametrize("path", EXPORT, ids=identify)
def test_the_exporter_never_imports_the_benchmarks(path: Path) -> None:
    for name, line in imports(path):
        assert not f"{name}.".startswith("corom.benchmarks."), f"{path.name}:{line} imports {name}"


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=identify)
def test_no_file_imports_a_half_by_its_bare_name(path: Path) -> None:
    """From the repository's root that works too, and gives a second copy of each class."""
    for name, line in imports(path):
        assert name.split(".")[0] not in HALVES, f"{path.name}:{line} imports {name}"


@pytest.mark.parametrize("path", SOURCES, ids=identify)
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text("utf-8"))), path.name


@pytest.mark.parametrize("half", HALVES)
def test_the_links_for_type_checkers_lead_to_the_folders(half: str) -> None:
    assert (ROOT / ".typing" / "corom" / half).resolve() == ROOT / half


def test_every_recipe_is_a_file_of_data_without_code() -> None:
    names = {p.name for p in (ROOT / "models").iterdir() if p.name != "__pycache__"}
    assert {Path(name).suffix for name in names} <= {".toml", ".md", ".py"}
    assert {name for name in names if name.endswith(".py")} == {"__init__.py"}
    assert ast.parse((ROOT / "models" / "__init__.py").read_text("utf-8")).body[1:] == []
