"""Packaging entry; the metadata lives in pyproject.toml. The README of a package index has no files beside it."""

import re
import tomllib
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent


def with_absolute_links(text: str, source: str) -> str:
    """The README with links to files of the repository as URLs; pictures as the raw files. source: the repository's URL."""
    text = re.sub(r"!\[([^\]]*)\]\((?!\w+://|#)([^)]+)\)", rf"![\1]({source}/raw/main/\2)", text)
    return re.sub(r"\]\((?!\w+://|#)([^)]+)\)", rf"]({source}/blob/main/\1)", text)


if __name__ == "__main__":
    project = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]
    setup(
        long_description=with_absolute_links((HERE / "README.md").read_text(), project["urls"]["Source"]),
        long_description_content_type="text/markdown",
    )
