"""The documents are true: what they name is there, and what must be named is named."""

import re
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Iterator
from typing import get_args

import click
import pytest
from documents import DOCUMENTS, ROOT, Document, document

from corom.export import errors as export_errors
from corom.export.recipe import recipe_names
from corom.runtime import cli as command_line
from corom.runtime import errors as runtime_errors
from corom.runtime import server_errors
from corom.runtime.cli import cli

README = document("README.md")
FLAG = re.compile(r"(?<![\w-])--?[a-zA-Z][\w-]*")
CALL = re.compile(r"(?:^|[ |(/])corom ([a-z]+)\b(?: ([a-z]+)(?=\s|$))?([^|#]*)")
FOREIGN_FLAGS = {
    "--help",  # click's own
    "--wheel",  # of `python -m build`
    # TEI's that have no equal here
    "--model-id", "--dense-path", "--tokenization-workers", "--max-batch-requests",
    "--huggingface-hub-cache", "--hf-token",
}  # fmt: skip
"""Flags of other programs that the documents speak of; none of them is corom's."""


def paths(group: click.Group, above: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Yield every command with its path, groups included."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield " ".join((*above, name)), command
        if isinstance(command, click.Group):
            yield from paths(command, (*above, name))


COMMANDS = dict(paths(cli))
FLAGS = {
    path: {flag for param in command.params for flag in (*param.opts, *param.secondary_opts)}
    for path, command in COMMANDS.items()
}
ALL_FLAGS = {flag for flags in FLAGS.values() for flag in flags if flag.startswith("-")}


# --- Commands and flags


def test_the_commands_document_is_what_the_command_line_says() -> None:
    """If this fails: ``make docs``."""
    program = "import sys; sys.path.insert(0, 'docs'); import commands; print(commands.reference())"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.rstrip() == document("docs/commands.md").text.rstrip(), "run: make docs"


def test_the_commands_document_has_every_flag_of_every_command() -> None:
    sections = re.split(r"^## corom ", document("docs/commands.md").text, flags=re.MULTILINE)
    described = {section.split("\n")[0]: section for section in sections[1:]}
    leaves = {path for path, command in COMMANDS.items() if not isinstance(command, click.Group)}
    assert set(described) == leaves
    for path in leaves:
        for flag in FLAGS[path]:
            assert not flag.startswith("-") or re.search(rf"`.*{flag}\b", described[path]), flag


@pytest.mark.parametrize("path", COMMANDS)
def test_every_option_says_what_it_is_for(path: str) -> None:
    for param in COMMANDS[path].params:
        assert not isinstance(param, click.Option) or param.help, param.opts


def called(document: Document) -> Iterator[tuple[str, str, int]]:
    """Yield path and arguments of every `corom …` that a document shows, with its line."""
    shown = [pair for kind in ("sh", "yaml", "ini", "text") for pair in document.lines(kind)]
    for line, place in [*shown, *((word, 0) for word in document.words)]:
        for found in re.finditer(CALL, line):
            both = f"{found[1]} {found[2]}"
            yield both if both in COMMANDS else found[1], found[3], place


@pytest.mark.parametrize("document", DOCUMENTS, ids=repr)
def test_every_command_in_the_documents_exists_and_takes_its_flags(document: Document) -> None:
    for path, arguments, line in called(document):
        place = f"{document.name}:{line}: corom {path}"
        assert path in COMMANDS, place
        for flag in FLAG.findall(arguments):
            assert flag in FLAGS[path] | {"--help"}, f"{place} {flag}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=repr)
def test_every_flag_in_the_documents_is_one_of_ours_or_known_to_be_anothers(
    document: Document,
) -> None:
    for word in document.words:
        for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", word):
            assert flag in ALL_FLAGS | FOREIGN_FLAGS, f"{document.name}: {flag}"


def test_flags_said_to_be_anothers_are_not_ours() -> None:
    assert not FOREIGN_FLAGS & ALL_FLAGS


def test_every_recipe_named_in_the_documents_exists() -> None:
    for d in DOCUMENTS:
        for name in re.findall(r"corom export (\S+)", d.text):
            plain = not name.startswith((".", "-", "modelscope:", "hf:")) and not name.endswith(
                ".toml"
            )
            assert not plain or name.strip("`.,:") in recipe_names() or name.isupper(), name


def test_every_extra_in_the_documents_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = set(project["optional-dependencies"])
    for d in DOCUMENTS:
        for named in re.findall(r"(?:corom|'\.)\[([\w,-]+)\]", d.text):
            assert set(named.split(",")) <= extras, f"{d.name}: {named}"


# --- Links


@pytest.mark.parametrize("source", DOCUMENTS, ids=repr)
def test_every_link_leads_somewhere(source: Document) -> None:
    for target in source.links:
        if target.startswith(("http:", "https:", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        path = (source.path.parent / name).resolve() if name else source.path
        assert path.exists(), f"{source.name}: {target}"
        if anchor:
            assert anchor in Document(path).anchors, f"{source.name}: {target}"


def test_every_document_below_docs_is_linked_from_the_readme() -> None:
    for path in (ROOT / "docs").glob("*.md"):
        assert f"docs/{path.name}" in README.links, path.name


# --- Errors


def test_every_error_is_in_the_errors_document_with_its_exit_code() -> None:
    rows = dict(
        re.findall(r"^\| `(\w+)`.*?\|.*?\| (\d+) \|", document("docs/errors.md").text, re.MULTILINE)
    )
    raised = {
        name: value
        for module in (runtime_errors, export_errors)
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, runtime_errors.CoromError)
    }
    assert rows == {name: str(value.exit_code) for name, value in raised.items()}


def test_every_exit_code_is_in_the_errors_document() -> None:
    section = document("docs/errors.md").text.split("## Exceptions")[0]
    told = {int(code) for code in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)}
    listed = command_line.__doc__ or ""
    known = {int(code) for code in re.findall(r"\b\d+\b", listed.split("Exit codes:")[1])}
    assert told == known


# --- The server


def test_every_status_of_the_server_is_in_the_errors_document() -> None:
    """Found in the source: what is refused with, what the other family's route makes of it."""
    source = "".join(p.read_text("utf-8") for p in (ROOT / "runtime").glob("server*.py"))
    numbers = re.findall(r"(?:Refusal\(\s*|status = |\d{3}: )(\d{3})\b", source)
    assert {"400", "429", "499", "503"} <= set(numbers)
    errors = document("docs/errors.md").text
    section = errors.split("## HTTP statuses")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\d{3}) \|(.*)$", section, re.MULTILINE)
    assert {status for status, _ in rows} == {"200", *numbers}
    kinds = {kind for _, row in rows for kind in re.findall(r"`([A-Z]\w+)`", row)}
    assert kinds <= set(get_args(server_errors.Kind))
    used = set(re.findall(r'\d{3},\s*"([A-Z]\w+)"', source))
    assert used == kinds
    types = {name for _, row in rows for name in re.findall(r"`(\w+_error)`", row)}
    assert types == {*server_errors.OPENAI_TYPES.values(), "invalid_request_error"}


def test_every_route_of_the_server_is_in_the_documents() -> None:
    source = (ROOT / "runtime" / "server_routes.py").read_text("utf-8")
    routes = set(re.findall(r'^ +"(/[\w/.]*)":', source, re.MULTILINE))
    assert "/v1/embeddings" in routes
    named = {word for d in DOCUMENTS for word in d.words if word.startswith("/")}
    assert routes <= named


def test_every_metric_of_the_server_is_in_the_operating_document(served_demo: str) -> None:
    with urllib.request.urlopen(f"{served_demo}/metrics") as reply:
        exposed = set(re.findall(r"^# TYPE (\w+) ", reply.read().decode(), re.MULTILINE))
    assert "corom_ready" in exposed
    section = document("docs/operate.md").text.split("## Metrics")[1].split("\n## ")[0]
    rows = "\n".join(row for row in section.splitlines() if row.startswith("| `"))
    told = {name.partition("{")[0] for name in re.findall(r"`((?:corom|te)_[\w{},]+)`", rows)}
    others = re.compile(r"(process|python)_")  # the client's own, named by their beginning
    created = {name for name in exposed if name.endswith("_created")}
    assert told == {name for name in exposed - created if not others.match(name)}


# --- The map of the code


def test_every_file_in_the_tree_of_the_readme_is_there() -> None:
    (tree,) = (b for b in README.blocks if not b.language and "runtime/" in b.code)
    names = [line.split()[0] for line in tree.code.splitlines() if line.strip()]
    assert names
    for name in names:
        assert (ROOT / name.strip("─├└│ ")).exists(), name


def test_every_python_file_named_in_the_readme_is_there() -> None:
    folder = None
    for line in README.text.splitlines():
        for half in re.findall(r"`(runtime|export|benchmarks)/\w+\.py`", line):
            folder = half
        for name in re.findall(r"`((?:\w+/)?\w+\.py)`", line):
            path = ROOT / name if "/" in name else ROOT / (folder or "") / name
            assert path.is_file(), name


def test_every_stage_of_the_two_ways_is_in_the_map() -> None:
    """The map may leave out the command line and small helpers."""
    for name in ("encoder", "tokens", "batching", "backend", "vectors", "manifest"):
        assert f"{name}.py" in README.text, name
    for name in ("recipe", "sources", "checkpoint", "reference", "graph", "staging", "parity"):
        assert f"{name}.py" in README.text, name


# --- The Chinese README


def without_comments(code: str) -> list[str]:
    """Return the lines of Python or shell without their comments, which may be translated."""
    return [re.sub(r"(^|\s+)# .*$", "", line).rstrip() for line in code.splitlines()]


def test_the_chinese_readme_keeps_step_with_the_english_one() -> None:
    chinese = document("README.zh.md")
    for ours, theirs in zip(chinese.blocks, README.blocks, strict=True):
        assert (ours.language, ours.skipped) == (theirs.language, theirs.skipped)
        assert without_comments(ours.code) == without_comments(theirs.code)
    assert [h.count("#") for h in re.findall(r"^#+ ", chinese.prose, re.MULTILINE)] == [
        h.count("#") for h in re.findall(r"^#+ ", README.prose, re.MULTILINE)
    ]
    assert sorted(set(chinese.links) - {"README.md"}) == sorted(
        set(README.links) - {"README.zh.md"}
    )
    files = re.compile(r"\w+\.py$")
    assert {w for w in chinese.words if files.search(w)} == {
        w for w in README.words if files.search(w)
    }
    figures = re.compile(r"\d+(?:\.\d+)*(?:e-\d+)?")
    assert sorted(figures.findall(chinese.prose)) == sorted(figures.findall(README.prose))
