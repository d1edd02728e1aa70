"""Which place of the parallel grid a global rank has, from the sizes alone (Megatron's orders)."""

from dataclasses import dataclass

from megatron_cod.args import MegatronArgs
from megatron_cod.errors import UserError


@dataclass(frozen=True)
class Place:
    """Coordinates of a rank, all from 0."""

    tensor: int
    context: int
    data: int
    pipeline: int


def _axes(args: MegatronArgs, world_size: int) -> list[tuple[str, int]]:
    """Axes and sizes, the fastest first."""
    tp, pp, cp = args.tensor_model_parallel_size, args.pipeline_model_parallel_size, args.context_parallel_size
    data = ("data", world_size // (tp * pp * cp))
    last = [("pipeline", pp), data] if args.use_tp_pp_dp_mapping else [data, ("pipeline", pp)]
    return [("tensor", tp), ("context", cp), *last]


def place_of(rank: int, args: MegatronArgs, world_size: int) -> Place:
    """Where ``rank`` stands. UserError for a rank that the job does not have."""
    if not 0 <= rank < world_size:
        raise UserError(f"rank {rank} is out of range: --world-size {world_size} has ranks 0 to {world_size - 1}")
    found = {}
    for axis, size in _axes(args, world_size):
        found[axis], rank = rank % size, rank // size
    return Place(**found)


def stage_rank(stage: int, args: MegatronArgs, world_size: int) -> int:
    """The first rank of a pipeline stage: position 0 on every other axis."""
    stride = 1
    for axis, size in _axes(args, world_size):
        if axis == "pipeline":
            break
        stride *= size
    return stage * stride
