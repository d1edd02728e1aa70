"""Build the real Transformer Engine for the installed torch, to run it on the emulated device. No nvcc, no GPU.

    python tests/gpu_emulation/transformer_engine/build.py [FOLDER]

Its Python code and its core library come as wheels (300 MB); the torch extension is compiled from its source, without
optimization and as one file: 2 minutes of one core and 4 GiB of memory, where its 33 files would take 20 minutes, most of
them for torch's headers. All goes to FOLDER/TE_VERSION-TORCH_VERSION-PYTHON_VERSION (by default below
``.venv/gpu_emulation_te``), nothing into the environment. Safe to interrupt and to repeat: what is finished is kept, and
a finished build takes no time.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
REQUIREMENTS = ROOT / "tests" / "te" / "requirements.txt"
FOLDER_VARIABLE = "MEGATRON_COD_TE_BUILD"
HEADERS = ["ninja", "wheel", "packaging", "nvidia-cudnn-frontend", "nvidia-cuda-crt", "nvidia-cuda-profiler-api"]
"""What the extension is compiled with and torch's wheels do not bring. Their versions follow torch's CUDA."""


def te_version() -> str:
    """The version that the tests of the Python part are pinned to."""
    found = re.search(r"^transformer-engine==(\S+)$", REQUIREMENTS.read_text(), re.MULTILINE)
    assert found, REQUIREMENTS
    return found[1]


def default_folder() -> Path:
    return Path(os.environ.get(FOLDER_VARIABLE) or ROOT / ".venv" / "gpu_emulation_te")


class Build:
    """The folders of one build: of one Transformer Engine for one torch and one Python."""

    def __init__(self, folder: Path) -> None:
        python = f"cp{sys.version_info.major}{sys.version_info.minor}"
        self.place = folder.resolve() / f"{te_version()}-torch{version('torch')}-{python}"
        self.site = self.place / "site"  # transformer_engine and what its import needs
        self.headers = self.place / "headers"
        self.curand = self.place / "curand"  # the core library looks for it by CURAND_HOME
        self.source = self.place / "source"
        self.objects = self.place / "objects"
        self.log = self.place / "build.log"

    @property
    def extension(self) -> Path | None:
        return next(self.site.glob("transformer_engine/wheel_lib/transformer_engine_torch*.so"), None)

    @property
    def libraries(self) -> list[Path]:
        """What uses CUDA: the emulation needs a stub for each function that these ask for."""
        assert self.extension
        return [self.site / "transformer_engine" / "wheel_lib" / "libtransformer_engine.so", self.extension]

    @property
    def missing(self) -> str | None:
        """Why it cannot be used here; None when it can."""
        done = self.extension and all(path.exists() for path in self.libraries)
        return None if done else f"Transformer Engine is not built in {self.place}; `make test-cuda-te` builds it"

    def environment(self) -> dict[str, str]:
        """What a process needs, apart from the emulated runtime's own variables, to import it."""
        paths = [str(self.site), str(self.headers), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {"PYTHONPATH": os.pathsep.join(paths), "CURAND_HOME": str(self.curand)}


def pip(*arguments: str) -> None:
    quiet = ["--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([sys.executable, "-m", "pip", arguments[0], *quiet, *arguments[1:]], check=True)


def whole(folder: Path, fill: Callable[[Path], None]) -> None:
    """Fill a folder unless it is there; one that was interrupted is begun again."""
    if folder.exists():
        return
    unfinished = folder.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    fill(unfinished)
    unfinished.rename(folder)


def install_python_part(folder: Path) -> None:
    import torch

    core = f"transformer-engine-cu{torch.version.cuda.split('.')[0]}=={te_version()}"
    pip("install", "--target", str(folder), "-r", str(REQUIREMENTS), core)


def fetch_source(folder: Path) -> None:
    wanted = f"transformer-engine-torch=={te_version()}"
    pip("download", "--no-build-isolation", "--no-binary", "transformer-engine-torch", "-d", str(folder), wanted)
    archive = next(folder.glob("*.tar.gz"))
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    archive.unlink()
    compile_quickly(next(folder.glob("transformer_engine_torch-*")))


def compile_quickly(source: Path) -> None:
    """One file that includes all others: torch's headers are read once. No optimization: the kernels compute nothing."""
    files = sorted((source / "csrc").rglob("*.cpp"))
    (source / "whole.cpp").write_text("".join(f'#include "{file.relative_to(source)}"\n' for file in files))
    recipe = source / "build_tools" / "pytorch.py"
    text = recipe.read_text()
    changes = {
        '"-O3"': '"-O0"',
        'all_files_in_dir(Path(csrc_source_files), name_extension="cpp")': '["whole.cpp"]',
    }
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    recipe.write_text(text)


def compile_environment(build: Build) -> dict[str, str]:
    torch = find_spec("torch")
    assert torch and torch.origin
    nvidia = Path(torch.origin).parents[1] / "nvidia"
    major = version("nvidia-cuda-runtime").split(".")[0]
    includes = [build.headers / "nvidia" / f"cu{major}" / "include", build.headers / "include"]
    includes += [nvidia / part / "include" for part in (f"cu{major}", "nccl", "cudnn")]
    return os.environ | {
        "PYTHONPATH": str(build.headers),
        "PATH": f"{build.headers / 'bin'}:{os.environ['PATH']}",
        "CPATH": ":".join(map(str, includes)),
        "NVTE_BUILD_USE_NVIDIA_WHEELS": "1",
        "NVTE_PYTORCH_FORCE_BUILD": "TRUE",
    }


def compile_extension(build: Build) -> None:
    place = next(build.source.glob("transformer_engine_torch-*"))
    made = build.objects / "library"
    command = [sys.executable, "setup.py", "build_ext", "--build-temp", str(build.objects), "--build-lib", str(made)]
    with build.log.open("w") as log:
        done = subprocess.run(command, cwd=place, env=compile_environment(build), stdout=log, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.exit(f"error: the extension does not compile; the compiler's words are in {build.log}")
    library = next(made.glob("**/transformer_engine_torch*.so"))
    target = build.site / "transformer_engine" / "wheel_lib" / library.name
    target.parent.mkdir(exist_ok=True)
    unfinished = target.with_suffix(".unfinished")
    shutil.copy(library, unfinished)
    unfinished.rename(target)


def make(folder: Path) -> Build:
    build = Build(folder)
    if not build.missing:
        return build
    build.place.mkdir(parents=True, exist_ok=True)
    with (build.place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if build.missing:
            fill(build)
    assert not build.missing
    return build


def fill(build: Build) -> None:
    begun = time.monotonic()
    print(f"building Transformer Engine in {build.place}: about 3 minutes, the first time only", flush=True)
    whole(build.headers, lambda to: pip("install", "--target", str(to), *HEADERS))
    whole(build.curand, lambda to: pip("install", "--target", str(to), "nvidia-curand"))
    whole(build.site, install_python_part)
    whole(build.source, fetch_source)
    compile_extension(build)
    print(f"built in {time.monotonic() - begun:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=default_folder())
    print(make(parser.parse_args().folder).place)


if __name__ == "__main__":
    main()
