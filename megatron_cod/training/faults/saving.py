"""A save that fails, as on a full disk: one line, and what was saved before stays what a run goes on from."""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.distributed.checkpoint.api import CheckpointException

from megatron_cod.checkpoint_files import newest_whole


class SaveError(RuntimeError):
    """A checkpoint could not be written; its text is the line the user sees.

    may_pass: whether the next try may go well, as after a lost rank or a file system that did not answer; not where the
    disk is full.
    """

    def __init__(self, text: str, may_pass: bool) -> None:
        super().__init__(text)
        self.may_pass = may_pass


def in_save(error: BaseException) -> bool:
    """Whether the error came out of Megatron's ``save_checkpoint``."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(one.name == "save_checkpoint" and "megatron/training" in one.filename for one in frames)


def cause(error: BaseException) -> str:
    """The first thing that went wrong, on one line; torch wraps what its ranks and writers ran into."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    return " ".join(str(error).split())[:200] or type(error).__name__


def free_space(folder: str) -> tuple[str, bool]:
    """What is left on the file system of a folder, and whether it is full: the writers' processes lose the reason of what
    went wrong."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return f"the file system does not answer ({error})", False
    if free < 1 << 20:
        return "its disk is full", True
    return f"{free / (1 << 30):,.1f} GiB are free there", False


@contextmanager
def failed_saves(args: Any) -> Iterator[None]:
    """Around the training: turn the errors of a save into a SaveError that says where the run would go on."""
    try:
        yield
    except (OSError, RuntimeError, CheckpointException) as error:
        if not in_save(error):
            raise
        try:
            newest, _ = newest_whole(args.save)
        except ValueError:
            newest = None
        left = f"the newest whole checkpoint is {newest.name}" if newest else "no checkpoint was finished before"
        step = int(args.curr_iteration) + 1
        space, is_full = free_space(args.save)
        raise SaveError(
            f"the save of step {step} in {args.save} failed: {cause(error)}; {space}; {left}", may_pass=not is_full
        ) from None
