"""The version of the package that makes a study's runs, with the commit where it runs from a clone."""

from __future__ import annotations

import subprocess
from pathlib import Path

from megatron_cod import __version__


def package_version() -> str:
    """Such as ``0.2.0 (3ca7891)``; with a plus where tracked files were changed since."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return __version__
    described = _describe(root)
    return f"{__version__} ({described})" if described else __version__


def _describe(root: Path) -> str:
    command = ["git", "-C", str(root), "describe", "--always", "--exclude=*", "--dirty=+"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:  # no git
        return ""
