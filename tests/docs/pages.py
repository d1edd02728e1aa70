"""The pages of the project, and the commands on them."""

import re
import shlex
from pathlib import Path

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_PROGRAM = re.compile(r"\btools/\w+\.py\b|-m megatron_cod[.\w]+|^ *(?:[A-Z_]+=\S* )*megatron-cod ")


def prose(text: str) -> str:
    """A page without code: neither blocks nor what is in backticks."""
    text = _FENCED.sub("", text)
    text = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    return re.sub(r"`[^`]*`", "", text)


def commands(page: Path) -> list[list[str]]:
    """The words of every command on a page that starts one of our programs, continued lines joined."""
    text = page.read_text()
    fenced = [code for kind, code in _FENCED.findall(text) if kind in ("sh", "bash", "")]
    indented = [line[4:] for line in _FENCED.sub("", text).replace("\\\n", " ").splitlines() if line.startswith("    ")]
    lines = [line for code in fenced for line in code.replace("\\\n", " ").splitlines()] + indented
    return [
        _words(line) for line in lines if _PROGRAM.search(line) and not line.lstrip().startswith(("#", "|", "error"))
    ]


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError:  # a quote that ends on another line
        return line.split()
