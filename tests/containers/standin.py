"""A stand-in for the base image of a container file: this system, and the Python of the tests."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

_SOURCES = ("/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list.d/ubuntu.sources", "/etc/apt/sources.list")
_LEFT_OUT = ("test", "idlelib", "tkinter", "config-*", "site-packages", "__pycache__", "_tkinter*")


def missing() -> str | None:
    """Why no stand-in can be made here; None when it can."""
    if shutil.which("mmdebstrap") is None:
        return "not installed: mmdebstrap (Debian: apt install mmdebstrap)"
    if sys.base_prefix == "/usr":
        return "the Python that runs the tests is the system's own: it cannot be copied into an image"
    return None if any(Path(path).is_file() for path in _SOURCES) else "no apt sources of Debian or Ubuntu"


def make_root(folder: Path) -> Path:
    """A root file system like that of python:3.x-slim: a minimal system of this machine's release, Python in /usr/local."""
    root = folder / "root"
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    sources = next(path for path in _SOURCES if Path(path).is_file())
    options = ("--variant=minbase", "--mode=root", "--include=ca-certificates")
    command = ["mmdebstrap", *options, release["VERSION_CODENAME"].strip('"'), str(root), sources]
    subprocess.run(command, check=True, capture_output=True)
    _copy_python(root)
    return root


def _copy_python(root: Path) -> None:
    own, there = Path(sys.base_prefix), root / "usr" / "local"
    library = Path(sysconfig.get_path("stdlib", vars={"installed_base": str(own)})).relative_to(own)
    shutil.copytree(own / library, there / library, ignore=shutil.ignore_patterns(*_LEFT_OUT))
    for found in (own / library / "site-packages").glob("pip*"):  # and nothing else of what may lie there
        shutil.copytree(found, there / library / "site-packages" / found.name)
    for name in ("python", "python3", f"python3.{sys.version_info.minor}"):
        shutil.copy(own / "bin" / name, there / "bin" / name)
    for found in (own / "lib").glob("libpython3*.so*"):
        shutil.copy(found, there / "lib" / found.name, follow_symlinks=False)
    extensions = [str(path) for path in (there / library / "lib-dynload").glob("*.so")]
    said = subprocess.run(["ldd", *extensions], check=True, capture_output=True, text=True).stdout
    for needed in {Path(line.split(" => ")[1].split()[0]) for line in said.splitlines() if " => /" in line}:
        if not (root / needed.relative_to("/")).exists() and own not in needed.parents:
            shutil.copy(needed, there / "lib" / needed.name)
    subprocess.run(["ldconfig", "-r", str(root)], check=True)
