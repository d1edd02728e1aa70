"""Imported before Megatron: prepares what Megatron reads while it is imported."""

import importlib.util
import logging
import os
import shutil
import sysconfig
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

from megatron_cod.adaptations import cpu
from megatron_cod.adaptations.quick_imports import quick_imports


def can_compile(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torch.compile can make kernels for a GPU here: Triton builds a module of Python with a C compiler first."""
    compilers = [environment["CC"]] if environment.get("CC") else ["gcc", "clang"]
    has_headers = Path(sysconfig.get_path("include"), "Python.h").is_file()
    has_triton = importlib.util.find_spec("triton") is not None
    return has_triton and has_headers and any(map(shutil.which, compilers))


# torch itself warns again of a driver that it cannot use (devices.check_driver).
warnings.filterwarnings("ignore", message="CUDA initialization", category=UserWarning)
if not cpu.has_cuda() or not can_compile():
    cpu.prepare_environment()
# Where there is no GPU, torch logs that a toolkit for one is installed, on every rank.
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
# Megatron warns a dozen times, on every rank, of optional packages; the backend in use is logged once.
warnings.filterwarnings("ignore", message=".*(Transformer Engine|[Tt]ransformer-engine|Apex)")
# Its logging asks for a rank, which a program of one process has not.
warnings.filterwarnings("ignore", message="Could not determine rank")
# torch's and Megatron's own calls while a checkpoint is loaded in one process.
warnings.filterwarnings("ignore", message="torch.distributed is disabled|The argument order of load|Please use DTensor")
if not cpu.has_cuda():
    with quick_imports():
        import megatron.core  # noqa: F401

_NOTHING_TO_MAKE = "--eval=nothing:;@:"
_stand_in: tempfile.TemporaryDirectory[str] | None = None


def satisfy_make() -> None:
    """Give the one ``make`` call of Megatron's start nothing to do: the wheel has the dataset helper compiled already.

    The wheel holds no makefile, and a failing make ends the run; so does a missing one (slim container images have none),
    for which ``true`` is linked. ``forget_make`` takes it back before training.
    """
    global _stand_in
    if shutil.which("make"):
        os.environ["MAKEFLAGS"] = _NOTHING_TO_MAKE
        return
    does_nothing = shutil.which("true")
    assert does_nothing is not None
    _stand_in = tempfile.TemporaryDirectory(prefix="make")  # goes with the process at the latest
    os.symlink(does_nothing, os.path.join(_stand_in.name, "make"))
    os.environ["PATH"] += os.pathsep + _stand_in.name


def forget_make() -> None:
    """Leave make to whoever runs it in this process later."""
    global _stand_in
    if os.environ.get("MAKEFLAGS") == _NOTHING_TO_MAKE:
        del os.environ["MAKEFLAGS"]
    if _stand_in is not None:
        os.environ["PATH"] = os.environ["PATH"].removesuffix(os.pathsep + _stand_in.name)
        _stand_in.cleanup()
        _stand_in = None
