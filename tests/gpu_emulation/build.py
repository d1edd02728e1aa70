"""Build the emulated CUDA runtime from torch's own headers. Needs g++ and torch's CUDA build.

python -m tests.gpu_emulation.build FOLDER [LIBRARY ...]    libraries: others that use CUDA, beside torch's own
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
PRELOAD = HERE / "preload"
"""Goes first on PYTHONPATH: its sitecustomize.py installs the Python half when torch is imported."""
WANTED = re.compile(r"(_*cuda[A-Z]\w*|cu[A-Z]\w*|cublas\w+|cudnn\w+|nccl\w+)")
REAL = re.compile(
    r"(cudnnGet(Version|CudartVersion|Property|ErrorString|LastErrorString)|cublasLtGet(Version|CudartVersion)|cuFile\w+)"
)
"""Left to the real libraries: torch compares versions when it is imported."""
DRIVER = """
cuCtxDestroy cuCtxFromGreenCtx cuCtxGetLimit cuCtxPopCurrent cuCtxPushCurrent cuCtxSetLimit cuCtxSynchronize
cuDevicePrimaryCtxRelease cuDeviceGetDevResource cuDevResourceGenerateDesc cuDevSmResourceSplitByCount cuFuncGetParamInfo
cuFuncSetAttribute cuFuncSetCacheConfig cuGreenCtxCreate cuGreenCtxDestroy cuGreenCtxStreamCreate cuLogsRegisterCallback
cuLogsUnregisterCallback cuMemAddressFree cuMemAddressReserve cuMemCreate cuMemExportToShareableHandle
cuMemGetAddressRange_v2 cuMemGetAllocationGranularity cuMemGetAllocationPropertiesFromHandle
cuMemImportFromShareableHandle cuMemMap cuMemRelease cuMemRetainAllocationHandle cuMemSetAccess cuMemsetD32Async
cuMemUnmap cuModuleUnload cuMulticastAddDevice cuMulticastBindMem cuMulticastCreate cuMulticastGetGranularity
cuMulticastUnbind cuPointerGetAttributes cuStreamWaitValue32 cuStreamWriteValue32 cuTensorMapEncodeIm2col
cuTensorMapEncodeTiled
""".split()  # noqa: SIM905
"""What torch and Triton look up by name rather than link to."""


def environment(folder: Path | str, mode: str = "numerics") -> dict[str, str]:
    """The variables that put a Python process under the runtime built in this folder; mode as fakecuda.py has it."""
    folder = Path(folder).resolve()
    paths = [str(PRELOAD), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "LD_PRELOAD": str(folder / "libcuda.so.1"),
        "LD_LIBRARY_PATH": str(folder),
        "PYTHONPATH": os.pathsep.join(paths),
        "FAKECUDA": mode,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        # torch then asks NVML for the number of devices: a process that only asked may still fork (tests do).
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    }


def without_emulation(variables: Mapping[str, str]) -> dict[str, str]:
    """The same variables for a process that is not under the emulation."""
    own = ("LD_PRELOAD", "LD_LIBRARY_PATH", "PYTORCH_NVML_BASED_CUDA_CHECK", "MEGATRON_COD_CUDA")
    kept = {name: value for name, value in variables.items() if name not in own and not name.startswith("FAKECUDA")}
    paths = [path for path in kept.get("PYTHONPATH", "").split(os.pathsep) if path and Path(path) != PRELOAD]
    return kept | {"PYTHONPATH": os.pathsep.join(paths)}


def missing() -> str | None:
    """Why the runtime cannot be built here, or None."""
    import torch

    if shutil.which("g++") is None:
        return "the emulated CUDA device needs g++ (Debian: apt install g++)"
    if torch.version.cuda is None:
        return "the emulated CUDA device needs a CUDA build of torch (pip install torch)"
    return None


def built(cache: Path, libraries: Sequence[Path] = ()) -> Path:
    """The folder in ``cache`` with the runtime for these sources and this torch; builds it where it is not there yet.

    libraries: others that use CUDA, beside torch's own. Safe to call from several processes at a time.
    """
    import torch

    sources = [HERE / name for name in ("runtime.cpp", "nccl.cpp", "emulation.h", "exports.map", "build.py")]
    contents = b"".join(source.read_bytes() for source in sources)
    contents += "".join(f"{library} {library.stat().st_mtime_ns}" for library in libraries).encode()
    folder = cache / hashlib.sha256(torch.__version__.encode() + contents).hexdigest()[:16]
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "libcuda.so.1").exists():
            with tempfile.TemporaryDirectory(dir=cache) as work:
                build(Path(work, "built"), list(libraries))
                os.rename(Path(work, "built"), folder)
    return folder


def names(library: Path, which: str) -> set[str]:
    out = subprocess.run(["nm", *which.split(), str(library)], capture_output=True, text=True, check=True).stdout
    return {line.split()[-1].split("@")[0] for line in out.splitlines() if line}


def build(folder: Path, libraries: list[Path]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch = Path(find_spec("torch").origin).parent
    site = torch.parent
    libraries += [*torch.glob("lib/lib*cuda*.so"), *torch.glob("lib/libcaffe2_nvrtc.so")]
    libraries += [*torch.glob("lib/libtorch_nvshmem.so"), torch / "lib/libtorch_python.so"]
    wanted = {name for library in libraries for name in names(library, "-D --undefined-only")} | set(DRIVER)
    includes = [*site.glob("nvidia/*/include"), site / "triton/backends/nvidia/include"]  # the last one has crt/
    flags = ["-O1", "-g", "-fPIC", "-w", "-std=c++17", "-pthread", "-fvisibility=hidden"]
    flags += [f"-I{path}" for path in includes]
    parts = [folder / "runtime.o", folder / "nccl.o"]
    for part in parts:
        subprocess.run(["g++", "-c", *flags, str(HERE / f"{part.stem}.cpp"), "-o", str(part)], check=True)
    written = {name for part in parts for name in names(part, "--defined-only")}
    stubs = sorted(name for name in wanted - written if WANTED.fullmatch(name) and not REAL.fullmatch(name))
    lines = [
        "int fakecuda_stub(const char*);",
        *(f'int {name}() {{ return fakecuda_stub("{name}"); }}' for name in stubs),
    ]
    (folder / "stubs.c").write_text("\n".join(lines) + "\n")
    subprocess.run(["gcc", "-c", "-fPIC", "-w", str(folder / "stubs.c"), "-o", str(folder / "stubs.o")], check=True)
    parts.append(folder / "stubs.o")
    link = ["-shared", "-pthread", "-Wl,-soname,libcuda.so.1", f"-Wl,--version-script={HERE / 'exports.map'}"]
    subprocess.run(["g++", *link, *map(str, parts), "-o", str(folder / "libcuda.so.1"), "-ldl"], check=True)
    for name in ("libcuda.so", "libnvidia-ml.so.1"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to("libcuda.so.1")


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    build(Path(sys.argv[1]), [Path(one) for one in sys.argv[2:]])


if __name__ == "__main__":
    main()
