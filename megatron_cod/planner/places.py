"""Where the groups of a layout stand, in Megatron's order of ranks: tensor, context, expert within data, pipeline."""

from dataclasses import dataclass

from megatron_cod.args import MegatronArgs
from megatron_cod.planner.collectives import Group, placed
from megatron_cod.planner.machine import Machine


@dataclass(frozen=True)
class Places:
    """The groups of one layout on one machine."""

    tensor: Group
    context: Group
    context_stride: int
    data: Group
    """Ranks that share gradients and states of everything but experts: data and context parallel."""
    expert: Group
    expert_tensor: Group
    expert_data: Group
    stage_stride: int
    """From a pipeline stage to the next one."""


def expert_tensor_size(args: MegatronArgs) -> int:
    return args.expert_tensor_parallel_size or args.tensor_model_parallel_size


def places(args: MegatronArgs, machine: Machine) -> Places:
    """args: Megatron's, after validation."""
    tp, cp, pp = args.tensor_model_parallel_size, args.context_parallel_size, args.pipeline_model_parallel_size
    etp, ep, world = expert_tensor_size(args), args.expert_model_parallel_size, args.world_size
    between = pp if args.use_tp_pp_dp_mapping else 1
    replicas = world // (tp * pp)
    return Places(
        tensor=placed(machine, tp, 1),
        context=placed(machine, cp, tp),
        context_stride=tp,
        data=placed(machine, replicas, tp * (between if cp == 1 else 1)),
        expert=placed(machine, ep, etp),
        expert_tensor=placed(machine, etp, 1),
        expert_data=placed(machine, max(1, world // (etp * ep * pp)), etp * ep * between),
        stage_stride=tp * cp if args.use_tp_pp_dp_mapping else world // pp,
    )
