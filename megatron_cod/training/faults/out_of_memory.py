"""Out of device memory: one line with the largest parts and flags that would help; the traceback goes to the rank's log."""

from __future__ import annotations

import os
import re
import socket
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from megatron_cod.args import MegatronArgs
from megatron_cod.common.amounts import GIB
from megatron_cod.console import this_rank
from megatron_cod.errors import CommonError
from megatron_cod.estimate.advice import advice, largest
from megatron_cod.estimate.memory import Memory, rank_memory
from megatron_cod.estimate.parameters import uncounted_features

# Where memory is not asked of torch's allocator: the driver, cuBLAS' and cuDNN's handles, NCCL's buffers.
_OTHERS = re.compile(r"(CUDA|NCCL|nccl|cuda).*out of memory|(CUBLAS|CUDNN)_STATUS_ALLOC_FAILED", re.DOTALL)
_ELSEWHERE = 2 * GIB
"""More than this beside torch's own memory is another process's: contexts, NCCL and libraries take less."""


class DeviceOutOfMemory(CommonError):
    """Its text is the line the user sees. Starting the run again would change nothing."""

    may_pass = False


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came from; torch's checkpoints wrap what their ranks ran into."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        failures = getattr(one, "failures", None)
        waiting += [one.__context__, one.__cause__]
        if isinstance(failures, dict):
            waiting += [failure[0] for failure in failures.values() if isinstance(failure, tuple)]


def out_of_memory(error: BaseException) -> BaseException | None:
    """The first cause that is a device without memory; None where there is none."""
    for one in _causes(error):
        if isinstance(one, torch.OutOfMemoryError) or (isinstance(one, RuntimeError) and _OTHERS.search(str(one))):
            return one
    return None


def _loading(error: BaseException) -> str | None:
    """Where the error came out of Megatron's ``load_checkpoint``, that in words."""
    names = {frame.name for one in _causes(error) for frame in traceback.extract_tb(one.__traceback__)}
    return "while the checkpoint is loaded" if "load_checkpoint" in names else None


def in_step(args: MegatronArgs, begun: bool) -> str:
    """Where a training run is, in words."""
    return f"in step {int(args.curr_iteration) + 1}" if begun else "in set-up"


def _device(error: BaseException) -> str:
    """How much there is, what was requested, and what is not this process's."""
    asked = re.search(r"Tried to allocate ([\d.]+ \w+)", str(error))
    words = [f"{asked[1]} more were asked for"] if asked else []
    try:
        free, total = torch.cuda.mem_get_info()
        own = torch.cuda.memory_reserved()
    except RuntimeError:  # the driver itself has nothing left
        return ", ".join(words) or "no memory for the CUDA context"
    words.insert(0, f"{total / GIB:.1f} GiB")
    if total - free - own > _ELSEWHERE:
        words.append(f"{(total - free - own) / GIB:.1f} GiB are held by other processes")
    return ", ".join(words)


def _estimate(args: MegatronArgs, of_rank: Callable[[Any, int], Memory]) -> str:
    uncounted = uncounted_features(args)
    if uncounted:
        return f"no estimate with {', '.join(uncounted)}"
    memory = of_rank(args, this_rank())
    text = f"estimated for this rank: {memory.total / GIB:.1f} GiB, most of it {largest(memory)}"
    return f"{text}; what would help: {advice(args, memory)}"


@contextmanager
def reported_in_one_line(
    args: MegatronArgs, when: Callable[[], str], of_rank: Callable[[Any, int], Memory] = rank_memory
) -> Iterator[None]:
    """Turn a device without memory into ``DeviceOutOfMemory``; with MEGATRON_COD_TRACEBACK=1 it stays what it was.

    args: Megatron's, after validation. when: in words, for the line. of_rank: the estimate.
    """
    try:
        yield
    except BaseException as error:  # torch's CheckpointException is no Exception
        found = out_of_memory(error)
        if found is None or os.environ.get("MEGATRON_COD_TRACEBACK") == "1":
            raise
        place = f"rank {this_rank()} on {socket.gethostname()}: the device is out of memory {_loading(error) or when()}"
        raise DeviceOutOfMemory(f"{place} ({_device(found)}); {_estimate(args, of_rank)}") from error
