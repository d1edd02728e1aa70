"""What a step does once: gradients over replicas, the optimizer, updated weights to all."""

import math
from dataclasses import dataclass

from megatron_cod.args import MegatronArgs
from megatron_cod.estimate.memory import gradient_bytes, optimizer_bytes, shards
from megatron_cod.estimate.shape import element_size
from megatron_cod.planner.collectives import Group, all_reduce, gather
from megatron_cod.planner.layer import Setting
from megatron_cod.planner.simulation import Passes

_LEAST_BUCKET, _BUCKET_A_REPLICA = 40_000_000, 1_000_000
"""Parameters of a bucket of gradients (megatron/core/distributed/distributed_data_parallel.py)."""


@dataclass(frozen=True)
class Update:
    """Seconds after, or beside, the passes of a stage."""

    gradients: float
    """Exposed, after its last pass."""
    weights: float
    """Exposed gathering of updated weights."""
    optimizer: float
    hidden: float


def _exposed(whole: float, beside: float, buckets: int, overlaps: bool) -> float:
    """What ``beside`` seconds of computing do not hide; the last bucket has nothing to hide behind."""
    return max(whole / buckets, whole - beside) if overlaps else whole


def _exchange(to: Setting, group: Group, size: float, collective: bool) -> float:
    if not collective:
        return 0.0
    return gather(to.machine, group, size) if to.args.use_distributed_optimizer else all_reduce(to.machine, group, size)


def _buckets(args: MegatronArgs, parameters: int, group: Group) -> int:
    size = getattr(args, "ddp_bucket_size", None) or max(_LEAST_BUCKET, _BUCKET_A_REPLICA * group.size)
    return max(1, math.ceil(parameters / size))


def optimizer_seconds(to: Setting, dense: int, experts: int) -> float:
    """States and weights of the shard read and written, gradients read for the norm and for the step, and set to zero."""
    args = to.args
    part = shards(args, dense, experts)
    own, whole = part.dense_states + part.expert_states, dense + experts
    states = 2 * optimizer_bytes(args) + 3 * gradient_bytes(args) + element_size(args.params_dtype)
    return to.kernels.moved(own * states + whole * gradient_bytes(args))


def tied_embedding(to: Setting) -> float:
    """Gradients of an embedding that the first and the last stage have: summed over the two, after all passes."""
    args = to.args
    if args.untie_embeddings_and_output_weights or args.pipeline_model_parallel_size == 1:
        return 0.0
    size = args.padded_vocab_size / args.tensor_model_parallel_size * args.hidden_size * gradient_bytes(args)
    within = 2 if to.places.stage_stride * (args.pipeline_model_parallel_size - 1) < to.machine.gpus_per_node else 1
    return all_reduce(to.machine, Group(2, within), size)


def update(to: Setting, dense: int, experts: int, passes: list[Passes], tied: bool) -> Update:
    """Of one stage. dense, experts: its parameters. passes: of its chunks. tied: it has a copy of a tied embedding."""
    args, data, experts_data = to.args, to.places.data, to.places.expert_data
    element, gradient = element_size(args.params_dtype), 2 if args.grad_reduce_in_bf16 else gradient_bytes(args)
    summed = _exchange(to, data, dense * gradient, True) + _exchange(to, experts_data, experts * gradient, True)
    sharded = bool(args.use_distributed_optimizer)
    spread = _exchange(to, data, dense * element, sharded) + _exchange(to, experts_data, experts * element, sharded)
    buckets = _buckets(args, dense + experts, data)
    there, back = sum(one.forward for one in passes), sum(one.backward for one in passes)
    late = _exposed(summed, back, buckets, args.overlap_grad_reduce)
    later = _exposed(spread, there, buckets, args.overlap_param_gather)
    return Update(
        gradients=late + (tied_embedding(to) if tied else 0.0),
        weights=later,
        optimizer=optimizer_seconds(to, dense, experts),
        hidden=summed + spread - late - later,
    )
