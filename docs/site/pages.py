"""Hooks of mkdocs.yml: the README and CONTRIBUTING become pages of the site, and links lead to them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
PAGES = {"README.md": "overview.md", "CONTRIBUTING.md": "contributing.md"}
"""File of the repository's root -> page of the site."""


def in_site(text: str) -> str:
    """A file of the root with the links that it has as a page beside those of ``docs``."""
    text = re.sub(r"\]\(docs/", "](", text)
    for file, page in PAGES.items():
        text = text.replace(f"]({file}", f"]({page}")
    return text


def on_files(files: Files, config: Any) -> Files:
    """Add the pages."""
    for file, page in PAGES.items():
        files.append(File.generated(config, page, content=in_site((ROOT / file).read_text())))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links from ``docs`` to the root's files."""
    for file, page in PAGES.items():
        markdown = markdown.replace(f"](../{file}", f"]({page}")
    return markdown
