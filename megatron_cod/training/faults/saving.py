"""A save that fails, as on a full disk: one line, and what was saved before stays what a run resumes from."""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributed.checkpoint.api import CheckpointException

from megatron_cod.args import MegatronArgs
from megatron_cod.checkpoint.directory import newest_whole
from megatron_cod.common.amounts import GIB
from megatron_cod.errors import UserError


class SaveError(UserError):
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


def cause(error: BaseException) -> BaseException:
    """The first thing that went wrong; torch wraps what its ranks and writers ran into."""
    if isinstance(error, CheckpointException) and error.failures:
        return next(iter(error.failures.values()))[0]
    return error


def free_space(folder: str) -> tuple[str, bool]:
    """What is left on the file system of a folder, and whether it is full: the writers' processes lose the reason of what
    went wrong."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return f"the file system does not answer ({error})", False
    if free < 1 << 20:
        return "its disk is full", True
    return f"{free / GIB:,.1f} GiB are free there", False


@contextmanager
def failed_saves(args: MegatronArgs) -> Iterator[None]:
    """Around the training: turn the errors of a save into a SaveError with the checkpoint that the run would resume from.

    Those of files, and the RuntimeErrors of torch's writers and of lost ranks. Others are a fault of ours, unless the disk
    is full: then its outcome is unknown.
    """
    save = args.save or ""  # without --save nothing is saved
    try:
        yield
    except (Exception, CheckpointException) as error:
        if not in_save(error):
            raise
        space, is_full = free_space(save)
        first = cause(error)
        if not is_full and not isinstance(first, OSError | RuntimeError):
            raise
        try:
            newest, _ = newest_whole(save)
        except ValueError:
            newest = None
        left = f"the newest whole checkpoint is {newest.name}" if newest else "no checkpoint was finished before"
        step = int(args.curr_iteration) + 1
        why = " ".join(str(first).split())[:200] or type(first).__name__
        raise SaveError(
            f"the save of step {step} in {args.save} failed: {why}; {space}; {left}", may_pass=not is_full
        ) from error
