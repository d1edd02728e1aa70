"""A launch's command line, parsed and validated like the launch does, without its processes."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from megatron_cod.training import before_megatron  # noqa: F401

# isort: split
from megatron_cod.adaptations import cpu
from megatron_cod.args import MegatronArgs
from megatron_cod.errors import UserError
from megatron_cod.training.flags.batch_sizes import batch_sizes
from megatron_cod.training.pretraining import TASK
from megatron_cod.training.start.checks import Need
from megatron_cod.training.start.prepare import StartHooks, prepare


@dataclass(frozen=True)
class Launch:
    """What the launch would start with."""

    args: MegatronArgs
    """Megatron's arguments after its own validation."""
    command_line: list[str]
    """What follows ``megatron_cod.training.pretrain``."""
    world_size: int
    notes: tuple[str, ...]
    """What could not be checked here."""


@contextlib.contextmanager
def as_process(rank: int, world_size: int) -> Iterator[None]:
    """The environment of one process of the job, for as long as the block lasts."""
    names = {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": "0"}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def read_launch(
    command_line: Sequence[str], world_size: int, parsed: Callable[[MegatronArgs], None] = lambda _: None
) -> Launch:
    """Everything the launch would refuse before it starts training, as far as one machine can see it.

    command_line: what follows ``megatron_cod.training.pretrain``. parsed: called with its plain parse before any check.
    Raises UserError with one line. No process group, no model; Megatron's own messages are dropped.
    """
    if world_size < 1:
        raise UserError(f"--world-size {world_size} must be at least 1")
    with as_process(0, world_size):
        hooks = StartHooks(parsed=parsed)
        start = prepare(command_line, TASK, world_size, provided(), hooks=hooks, set_globals=False, quiet=True)
    args = start.args
    if args.step_batch_size_schedule:  # Megatron has the least that can be there
        args.global_batch_size = batch_sizes(args).last
    return Launch(args, list(command_line), world_size, start.notes)


def provided() -> frozenset[Need]:
    """What the rehearsal has for the checks: with a GPU, this is treated as a machine of the job."""
    return frozenset({Need.MACHINE}) if cpu.has_cuda() else frozenset()
