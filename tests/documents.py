"""The documents of the project, taken apart: blocks of code, headings, links, words in code."""

import re
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(
    r"(?P<skipped><!-- not run: [^>]+ -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """A block of code in a document."""

    language: str
    code: str
    line: int
    skipped: bool


class Document:
    """A Markdown file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.relative_to(ROOT).as_posix()
        self.text = path.read_text("utf-8")

    @cached_property
    def blocks(self) -> list[Block]:
        return [
            Block(
                found["language"],
                found["code"],
                self.text[: found.start("code")].count("\n") + 1,
                bool(found["skipped"]),
            )
            for found in BLOCK.finditer(self.text)
        ]

    @cached_property
    def prose(self) -> str:
        """The text without its blocks of code."""
        return BLOCK.sub("", self.text)

    @cached_property
    def headings(self) -> list[str]:
        return re.findall(r"^#+ (.+)$", self.prose, re.MULTILINE)

    @cached_property
    def anchors(self) -> set[str]:
        """The anchors that headings get where Markdown is shown."""
        kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in self.headings)
        return {heading.replace(" ", "-") for heading in kept}

    @cached_property
    def links(self) -> list[str]:
        """The targets of links and images."""
        return re.findall(r"\]\(([^)\s]+)\)", self.prose)

    @cached_property
    def words(self) -> list[str]:
        """What is written as code within the prose."""
        return re.findall(r"`([^`\n]+)`", self.prose)

    def lines(self, language: str) -> list[tuple[str, int]]:
        """Return the lines of the blocks of a language, continued ones joined, with their place."""
        found = []
        for block in self.blocks:
            if block.language == language:
                code = block.code.replace("\\\n", " ")
                found += [(line, block.line) for line in code.splitlines()]
        return found

    def __repr__(self) -> str:
        return self.name


FOLDERS = (".", "benchmarks", "docs", "models")
DOCUMENTS = [Document(path) for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.md"))]


def document(name: str) -> Document:
    """Return the document of this name, relative to the root."""
    return next(document for document in DOCUMENTS if document.name == name)
