"""Imported once by the fork server: everything a worker needs, and no autograd, whose threads do not survive a fork."""

import multiprocessing
import os
from functools import cache
from typing import Any

from tests.te import emulation

if emulation.is_asked_for():
    emulation.install()

import megatron.core.models.mimo
import megatron.core.tokenizers.text.libraries  # with transformers: two seconds in each rank otherwise
import megatron.core.tokenizers.text.models  # noqa: F401
import torch._dynamo  # noqa: F401  # the adaptation to the CPU would in each rank
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.training.argument_utils import ArgumentGroupFactory

import megatron_cod.training.run  # noqa: F401
from megatron_cod.launch import helper_processes
from megatron_cod.training.evaluation.flags import PROGRAM
from megatron_cod.training.fine_tuning.task import task
from megatron_cod.training.flags.parser import build_parser
from megatron_cod.training.pretraining import TASK


def _settle() -> None:
    """As what Megatron starts does; and no connections, or who waits for a killed rank would not notice."""
    helper_processes.settle()
    for name in os.listdir("/proc/self/fd"):
        number = int(name)
        if number > 2 and os.path.exists(path := f"/proc/self/fd/{number}") and os.readlink(path).startswith("socket:"):
            os.close(number)


@cache
def _results_of_writers(_pid: int) -> Any:
    from multiprocessing.managers import SyncManager

    manager = SyncManager(ctx=multiprocessing.get_context("fork"))
    manager.start(_settle)
    return manager.Queue()


def _queue(mp_mode: str = "spawn") -> Any:
    """Of a save's writers. Megatron starts a new Python for it, which imports torch when the first result comes."""
    return _results_of_writers(os.getpid())


filesystem_async.get_write_results_queue = _queue

_read_docstrings = ArgumentGroupFactory._get_field_docstrings
_docstrings: dict[type, dict[str, str]] = {}


def _field_docstrings(self: ArgumentGroupFactory, config: type) -> dict[str, str]:
    """Help texts of flags, which Megatron reads from the sources of its configurations at every start."""
    if config not in _docstrings:
        _docstrings[config] = _read_docstrings(self, config)
    return dict(_docstrings[config])


ArgumentGroupFactory._get_field_docstrings = _field_docstrings
for _program in (None, TASK, task(), PROGRAM):
    build_parser(_program)
