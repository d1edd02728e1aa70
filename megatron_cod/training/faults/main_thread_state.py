"""What the main thread of a rank is doing, observed by another thread, and how long it has waited for other ranks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
from torch.distributed import distributed_c10d

SAVING = "saving a checkpoint"
WAITING = "waiting for other ranks"
COMPUTING = "computing"
# Files, and functions where only some count, of which a frame shows what the main thread does; the innermost that matches
# counts.
_PLACES = (
    ("torch/distributed/distributed_c10d.py", "", WAITING),
    ("megatron/core/pipeline_parallel/p2p_communication.py", "", WAITING),
    ("megatron/training/checkpointing.py", "save_checkpoint", SAVING),
    ("megatron/training/checkpointing.py", "load_checkpoint", "loading a checkpoint"),
    ("torch/utils/data/", "", "loading data"),
    ("megatron_cod/training/data/batches.py", "get_batch", "loading data"),
    ("megatron_cod/training/data/batches.py", "datasets_provider", "building datasets"),
)


def _frames(innermost: FrameType | None) -> Iterator[FrameType]:
    while innermost is not None:
        yield innermost
        innermost = innermost.f_back


def doing(innermost: FrameType | None) -> str:
    """What a thread with this innermost frame is at, and where, in a few words."""
    what, where = "", ""
    for frame in _frames(innermost):
        path, function = frame.f_code.co_filename, frame.f_code.co_name
        if not what:
            what = next((name for part, only, name in _PLACES if part in path and only in ("", function)), "")
        if not where and "/torch/" not in path and "/threading.py" not in path:
            where = f"{'/'.join(path.split('/')[-2:])}:{frame.f_lineno} {function}"
    return f"{what or COMPUTING} ({where})"


def collectives_begun() -> int:
    """How many this process has begun, over all its groups: distinguishes two of the same place."""
    if not torch.distributed.is_initialized():
        return 0
    return sum(group._get_sequence_number_for_group() for group in list(distributed_c10d._world.pg_map))


class Wait:
    """How long a thread has been waiting for other ranks in one and the same collective, as far as was observed."""

    def __init__(self) -> None:
        self._place: tuple[Any, ...] = ()
        self._since = time.monotonic()

    def observe(self, innermost: FrameType | None) -> float:
        """Seconds since the first look that found it there; 0 where it does not wait."""
        now = time.monotonic()
        if not doing(innermost).startswith(WAITING):
            self._place = ()
            return 0.0
        place = (collectives_begun(), *((frame.f_code, frame.f_lasti) for frame in _frames(innermost)))
        if place != self._place:
            self._place, self._since = place, now
        return now - self._since
