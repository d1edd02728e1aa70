"""Links between pages lead somewhere, and files that pages name exist."""

import re

import pytest

from tests.conftest import ROOT
from tests.docs.pages import PAGES

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FILE = re.compile(
    r"`((?:megatron_cod|tools|tests|examples|recipes|docs)/[\w./-]+\.(?:py|md|yaml|sh|sbatch|c|cpp|html|csv|json))"
)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken(text: str, folder) -> list[str]:
    found = []
    for link in _LINK.findall(text):
        if "://" in link or link.startswith("mailto:"):
            continue
        name, _, anchor = link.partition("#")
        target = (folder / name) if name else None
        if (target is not None and not target.exists()) or (
            anchor and anchor not in anchors(text if target is None else target.read_text())
        ):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    assert broken(page.read_text(), page.parent) == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: page.name)
def test_named_files_exist(page):
    assert [name for name in _FILE.findall(page.read_text()) if not (ROOT / name).exists()] == []


def test_finds_broken_links():
    assert broken("# One\n[a](#one) [b](#two) [c](missing.md)", ROOT) == ["#two", "missing.md"]
