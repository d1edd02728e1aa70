"""Random states in a checkpoint: those of a CPU do not fit a GPU's generators, nor the other way round."""

from collections.abc import Callable
from typing import Any

import torch

from megatron_cod.args import MegatronArgs
from megatron_cod.checkpoint.directory import RELEASE
from megatron_cod.checkpoint.scheme_record import device_kind, recorded_device_kind
from megatron_cod.checkpoint.selection import checkpoint_to_load, saved_state
from megatron_cod.training.loop.observers import Observer, Run

_NAMES = {"cpu": "CPU processes", "cuda": "GPUs"}


def _foreign(args: MegatronArgs) -> str:
    """A line for the log where the checkpoint to load is of the other kind of device, or an empty text."""
    checkpoint = checkpoint_to_load(args)
    if checkpoint is None or checkpoint.name == RELEASE:
        return ""
    saved = saved_state(checkpoint).get("args")
    theirs, ours = recorded_device_kind(saved) if saved else device_kind(), device_kind()
    if theirs == ours:
        return ""
    return (
        f"{checkpoint} was trained on {_NAMES[theirs]}, this run is on {_NAMES[ours]}: its random states are skipped, "
        "as with --no-load-rng"
    )


class ForeignRandomStates(Observer):
    """Has them skipped, before the checkpoint is loaded."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def model_built(self, model: list[Any]) -> None:
        skip_foreign(self._run.args, self._run.log)


def skip_foreign(args: MegatronArgs, log: Callable[[str], None]) -> None:
    """Sets ``--no-load-rng`` where the states of the checkpoint do not fit. Collective.

    Rank 0 reads the checkpoint for all: thousands of ranks reading the same file would overload the file system.
    """
    if (args.load or args.pretrained_checkpoint) and not args.no_load_rng and not args.finetune:
        line = [_foreign(args) if torch.distributed.get_rank() == 0 else ""]
        torch.distributed.broadcast_object_list(line, device=torch.device(torch.cuda.current_device()))
        if line[0]:
            args.no_load_rng = True
            log(line[0])
