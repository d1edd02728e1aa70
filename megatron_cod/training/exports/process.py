"""One export beside a training: ``python -m megatron_cod.training.exports.process CHECKPOINT OUTPUT --parent PID``.

It gets the processor time and the disk only while nobody else wants them, one thread, and no GPU. Its result is not
compared with Megatron's model, as ``megatron-cod convert export`` does: that takes 8 bytes of memory a parameter.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import suppress
from pathlib import Path

import psutil

from megatron_cod.errors import run_tool
from megatron_cod.launch.helper_processes import settle

_GROUP = Path("/proc/self/autogroup")


def lower_priority() -> None:
    """The lowest priority that the system has, for the processor and the disk.

    Where Linux shares the processor between sessions first, a process of low priority in a session of its own has as much
    of it as a whole training: there the session has a priority too.
    """
    os.nice(19)
    if os.getsid(0) == os.getpid() and _GROUP.is_file():
        with suppress(OSError):
            _GROUP.write_text("19")
    with suppress(OSError, AttributeError):  # Linux
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    with suppress(OSError, AttributeError):
        psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)


def _read() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--parent", type=int, required=True, help="process id of the training")
    parser.add_argument("--import", dest="import_modules", nargs="*", default=[])
    return parser.parse_args()


def _log(text: str) -> None:
    print(text, flush=True)


def main() -> None:
    """Export one checkpoint, and end with the training."""
    args = _read()
    settle()
    if os.getppid() != args.parent:  # it ended before the kernel knew that this process is to end with it
        sys.exit(1)
    lower_priority()
    from megatron_cod.training import before_megatron  # noqa: F401

    # isort: split
    import torch

    from megatron_cod.huggingface.export import ExportJob, export_model
    from megatron_cod.schemes.table import import_modules

    torch.set_num_threads(1)
    import_modules(args.import_modules)
    export_model(ExportJob(args.checkpoint, args.output, verify=False), _log)


if __name__ == "__main__":
    run_tool(main)
