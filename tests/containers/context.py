"""What a build is given: a copy of the project, with the things beside it that must not reach an image."""

import shutil
import subprocess
from pathlib import Path

from tests.conftest import ROOT

PLANTED = ("runs/secret", ".venv/secret", ".git/secret", "key.pem", "tools/__pycache__/secret.pyc", "tests/secret.py")


def copy_of_the_project(folder: Path) -> Path:
    """The tracked files of the project (those not committed too), and ``PLANTED``."""
    listed = ("git", "ls-files", "--cached", "--others", "--exclude-standard")
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    for name in names:
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            # Links stay links: recipes and launch scripts of the package are the repository's.
            if (ROOT / name).is_file() or (ROOT / name).is_symlink():
                shutil.copy(ROOT / name, folder / name, follow_symlinks=False)
    for name in PLANTED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("not for the image\n")
    return folder


def until(file: Path, line: str, target: Path) -> Path:
    """A container file's lines before the first that begins with ``line``, as a file of its own."""
    kept = file.read_text().split(f"\n{line}")[0]
    assert kept != file.read_text(), f"{file.name} has no line that begins with {line}"
    target.write_text(kept + "\n")
    return target


def mutant(file: Path, old: str, new: str, target: Path) -> Path:
    """A container file with ``old`` replaced."""
    assert old in file.read_text(), f"{file.name} does not say {old}"
    target.write_text(file.read_text().replace(old, new))
    return target
