"""Which checkpoint ``--load`` names, whether ``--save`` can be written, and what a checkpoint holds beside its tensors."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint import FileSystemReader, load

from megatron_cod.args import MegatronArgs
from megatron_cod.checkpoint.directory import (
    RELEASE,
    TRACKER,
    is_dcp,
    iteration_name,
    iterations,
    latest_checkpoint,
    newest_whole,
    read_tracker,
    same_directory,
)
from megatron_cod.checkpoint.rewinds import pending
from megatron_cod.common.files import check_writable
from megatron_cod.errors import UserError

RESOLVED = "resolved_args.yaml"


def saved_state(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint holds beside the tensors: 'args', 'content_metadata'. UserError when it cannot be read."""
    from megatron.core import dist_checkpointing

    try:
        return (
            _dcp_state(checkpoint) if is_dcp(checkpoint) else dist_checkpointing.load_common_state_dict(str(checkpoint))
        )
    except Exception as error:
        raise UserError(f"checkpoint {checkpoint} is corrupt: {' '.join(str(error).split())[:200]}") from None


def _dcp_state(checkpoint: Path) -> dict[str, Any]:
    state: dict[str, Any] = {"args": None}
    load(state, storage_reader=FileSystemReader(checkpoint), no_dist=True)
    return state


def checkpoint_to_load(args: MegatronArgs) -> Path | None:
    """The checkpoint Megatron will load, or None for a start from scratch; see ``newest_whole`` for UserError."""
    directory = args.load
    if args.pretrained_checkpoint and not (directory and (Path(directory) / TRACKER).is_file()):
        directory = args.pretrained_checkpoint
    if not directory:
        return None
    if args.ckpt_step and read_tracker(directory) != RELEASE:
        checkpoint = Path(directory) / iteration_name(args.ckpt_step)
        if not checkpoint.is_dir():
            raise UserError(f"--ckpt-step {args.ckpt_step}: {checkpoint} does not exist")
        return checkpoint
    if same_directory(directory, args.save):
        # As rank 0 leaves it (``retention.clean``, ``rewind.perform``), which may be at that just now.
        return pending(args) or newest_whole(directory)[0]
    return latest_checkpoint(directory)


def ignored(args: MegatronArgs, checkpoint: Path | None) -> list[str]:
    """A line for each unfinished ``iter_N`` of a directory that is only loaded from: nothing is removed there."""
    if not args.load or same_directory(args.load, args.save) or args.ckpt_step:
        return []
    number = checkpoint.name.removeprefix("iter_") if checkpoint else ""
    newest = int(number) if number.isdigit() else -1
    newer = [path for iteration, path in iterations(args.load).items() if iteration > newest]
    return [f"{path} is ignored: {TRACKER} does not name it, nor one after it" for path in newer]


def check_save(
    save: str | None, load: str | None, *, step: int | None = None, finetune: bool = False, keep: bool = True
) -> None:
    """UserError when ``--save`` cannot be written, or holds checkpoints that this run would overwrite.

    step: ``--ckpt-step``. keep: whether a directory that is made to try it stays. A directory with nothing but an
    interrupted first save is free; ``retention.clean`` empties it.
    """
    if not save:
        return
    directory = Path(save)
    check_writable(directory, f"--save {save}", keep=keep)
    tracked = read_tracker(directory)
    if tracked is None:
        return
    if not same_directory(save, load):
        raise UserError(
            f"--save {save} already holds checkpoints; resume them with --load {save}, or save somewhere else"
        )
    newest = max(iterations(directory), default=0) if not tracked.isdigit() else int(tracked)
    if tracked != RELEASE and (finetune or (step and step < newest)):
        flag = "--finetune" if finetune else f"--ckpt-step {step}"
        raise UserError(
            f"{flag} would overwrite checkpoints up to {directory / iteration_name(newest)}; give another --save"
        )


@contextmanager
def readable(load: str | None) -> Iterator[None]:
    """Turn torch's report of a checkpoint that cannot be read, one traceback a rank, into a UserError of one line."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:
        causes = [str(cause) for cause, _ in error.failures.values()]
        first = " ".join((causes or [str(error)])[0].split())
        raise UserError(f"checkpoint in {load} is corrupt or cannot be read: {first[:200]}") from None


def write_resolved(save: str, text: str) -> None:
    """Keep the resolved arguments in the checkpoint directory; earlier, different ones are kept under a number."""
    target = Path(save) / RESOLVED
    if target.is_file():
        old = target.read_text()
        if old == text:
            return
        number = 1
        while (kept := target.with_suffix(f".{number}.yaml")).exists():
            number += 1
        target.rename(kept)
    target.write_text(text)
