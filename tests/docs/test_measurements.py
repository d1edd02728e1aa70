"""Measured figures have a date, and a command that measures them again."""

import re

import pytest

from tests.conftest import ROOT

DATE = re.compile(r"\b20\d\d-\d\d-\d\d\b")
COMMAND = re.compile(r"(?:python3?|make|pytest) [-\w./]+")
MEASURED = [
    *(ROOT / "docs" / "results").glob("*.md"),
    *(ROOT / "docs" / "results").glob("*/README.md"),
    *(
        ROOT / "docs" / name
        for name in ("benchmarks.md", "containers.md", "data.md", "evaluation.md", "expectations.md", "performance.md")
    ),
]


def is_traceable(text: str) -> bool:
    return bool(DATE.search(text) and COMMAND.search(text))


@pytest.mark.parametrize("page", MEASURED, ids=lambda page: str(page.relative_to(ROOT / "docs")))
def test_page_of_measurements_has_date_and_command(page):
    assert is_traceable(page.read_text())


def test_finds_figures_without_date_or_command():
    assert is_traceable("`python tools/x.py` on 2026-11-24: 3 s")
    assert not is_traceable("`python tools/x.py`: 3 s") and not is_traceable("on 2026-11-24: 3 s")
