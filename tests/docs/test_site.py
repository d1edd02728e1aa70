"""The documentation as a site (mkdocs.yml): builds, and refuses dead links and pages outside the menu."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.fixture
def sources(tmp_path):
    for name in ("mkdocs.yml", "README.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder / "site")]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)


def test_site_builds_with_links_to_its_own_pages(sources):
    done = build(sources)
    assert done.returncode == 0, done.stderr
    assert len(list((sources / "site").rglob("*.html"))) >= len(list((ROOT / "docs").rglob("*.md")))
    assert 'href="overview.html"' in (sources / "site" / "index.html").read_text()
    overview = (sources / "site" / "overview.html").read_text()
    assert 'href="api.html"' in overview and 'href="docs/' not in overview


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "text", "expected"),
    [
        ("scale.md", "\n[x](nowhere.md)\n", "nowhere.md"),
        ("scale.md", "\n[x](faults.md#nothing)\n", "nothing"),
        ("alone.md", "# A page that no menu has\n", "alone.md"),
    ],
    ids=["link", "anchor", "page"],
)
def test_site_refuses(sources, page, text, expected):
    with (sources / "docs" / page).open("a") as file:
        file.write(text)
    done = build(sources)
    assert done.returncode == 1 and expected in done.stderr
