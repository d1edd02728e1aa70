"""Build the wheel and the sdist out of a copy of the tracked files, as a release does."""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


def copy_of_the_checkout(folder: Path) -> Path:
    """The files that git knows, links as links."""
    listed = ("git", "ls-files", "--cached", "--others", "--exclude-standard")
    for name in subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines():
        if name.startswith(("tests/", "docs/results/")) or not (ROOT / name).exists():
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name, follow_symlinks=False)
    return folder


def build(kind: str, source: Path, output: Path) -> Path:
    """kind: wheel or sdist. Without a network: setuptools is that of this environment."""
    output.mkdir(parents=True, exist_ok=True)
    code = f"from setuptools import build_meta; print('made', build_meta.build_{kind}({str(output)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return output / done.stdout.split("made ")[-1].strip()
