"""The package's page: README.md, its links into the repository as the names of files there."""

import re
from pathlib import Path

from setuptools import setup

README = Path(__file__).with_name("README.md").read_text("utf-8")
PAGE = re.sub(r"\[([^\]]+)\]\((?!https?:)([^)\s]+)\)", r"\1 (`\2`)", README)

setup(long_description=PAGE, long_description_content_type="text/markdown")
