"""Bytes a rank needs: weights, gradients and optimizer states by count, activations by estimate.

docs/rehearsal.md has the formulas. Not in them: what the allocator rounds up (at most 1 MiB a tensor) and reserves beside
(``RESERVED``), buffers of NCCL, and the CUDA context.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from megatron.core import optimizer as megatron_optimizer

from megatron_cod.args import MegatronArgs
from megatron_cod.estimate.activations import chunk_activations, gathered_input, logits_bytes, shared_rotary
from megatron_cod.estimate.parameters import Count, chunk_count
from megatron_cod.estimate.ranks import place_of
from megatron_cod.estimate.schedule import peak_in_flight, stage_tasks
from megatron_cod.estimate.shape import element_size, microbatches, virtual_group
from megatron_cod.pipeline import StagePlan, plan_pipeline, split_from_args

RESERVED = (0.02, 0.18)
"""Least and most that the allocator reserved over what was allocated at the peak, of the shapes in docs/rehearsal.md."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    buffers: float = 0.0
    """Kept between steps beside weights, gradients and optimizer."""
    step: float = 0.0
    """Made and given back within the optimizer's step, when there are no activations."""

    @property
    def static(self) -> float:
        """What is held all the time."""
        return self.weights + self.gradients + self.optimizer + self.buffers

    @property
    def total(self) -> float:
        """The peak: while passes run, or in the optimizer's step."""
        return self.static + max(self.activations, self.step)


@dataclass(frozen=True)
class Shards:
    """Parameters of a rank, and over how many ranks the distributed optimizer spreads their states."""

    dense: int
    experts: int
    replicas: int
    expert_replicas: int

    @property
    def dense_states(self) -> float:
        return self.dense / self.replicas

    @property
    def expert_states(self) -> float:
        return self.experts / self.expert_replicas


def shards(args: MegatronArgs, dense: int, experts: int) -> Shards:
    """States of experts are spread over the replicas of the experts, all others over those of data and context."""
    if not args.use_distributed_optimizer:
        return Shards(dense, experts, 1, 1)
    etp = args.expert_tensor_parallel_size or args.tensor_model_parallel_size
    stages = args.pipeline_model_parallel_size
    expert_replicas = args.world_size // (etp * args.expert_model_parallel_size * stages)
    return Shards(dense, experts, args.data_parallel_size * args.context_parallel_size, expert_replicas)


def optimizer_bytes(args: MegatronArgs) -> int:
    """Bytes of optimizer state a parameter: fp32 main weights where the weights are not fp32, and the moments.

    An upper bound for muon, which has Adam's two moments only where it leaves the work to Adam, and else one.
    """
    main = 4 if element_size(args.params_dtype) < 4 else 0
    if args.optimizer == "sgd":
        return main + (4 if args.sgd_momentum else 0)
    if args.optimizer == "lion":
        return main + 4
    if args.use_precision_aware_optimizer:
        main = element_size(args.main_params_dtype) if main else 0
        return main + element_size(args.exp_avg_dtype) + element_size(args.exp_avg_sq_dtype)
    return main + 8


def checkpoint_bytes(args: MegatronArgs, parameters: int) -> int:
    """Bytes of a checkpoint of a model with so many parameters: weights, and optimizer states unless omitted."""
    return parameters * (element_size(args.params_dtype) + (0 if args.no_save_optim else optimizer_bytes(args)))


def gradient_bytes(args: MegatronArgs) -> int:
    """Bytes of a main gradient."""
    if args.use_precision_aware_optimizer:
        return element_size(args.main_grads_dtype)
    return 4 if args.accumulate_allreduce_grads_in_fp32 else element_size(args.params_dtype)


def model_memory(args: MegatronArgs, dense: int, experts: int) -> tuple[float, float, float]:
    """Bytes of weights, gradients and optimizer states for so many parameters on a rank outside and in the experts."""
    part = shards(args, dense, experts)
    states = optimizer_bytes(args) * (part.dense_states + part.expert_states)
    return element_size(args.params_dtype) * (dense + experts), gradient_bytes(args) * (dense + experts), states


def step_bytes(args: MegatronArgs, dense: int, experts: int) -> float:
    """What an optimizer step makes for as long as it lasts, in fp32, of the rank's shard.

    torch's AdamW, the Adam where neither Apex nor Transformer Engine is: the roots of the second moments of all parameters
    at once (``_multi_tensor_adam``); torch's SGD: the gradients with the weight decay. Over several expert ranks
    experts have an optimizer of their own, which steps after the other. Gradients in less than fp32 have their copies in
    fp32, all of them.
    """
    part = shards(args, dense, experts)
    roots = args.optimizer != "sgd" or args.weight_decay > 0
    torch_has_it = megatron_optimizer.USING_PYTORCH_OPTIMIZER and roots
    together = sum if args.expert_model_parallel_size == 1 else max
    once = 4 * together((part.dense_states, part.expert_states)) if torch_has_it else 0.0
    copied = gradient_bytes(args) < 4 and not args.use_precision_aware_optimizer
    return once + (4 * (part.dense_states + part.expert_states) if copied else 0.0)


def stage_memory(args: MegatronArgs, stage: int, chunks: Sequence[StagePlan]) -> tuple[int, Memory]:
    """(the most micro-batch passes that wait for their backward, bytes) on each rank of a stage with these chunks."""
    count = sum((chunk_count(args, chunk) for chunk in chunks), Count())
    dense, experts = count.dense_on_rank(args), count.experts_on_rank(args)
    group = virtual_group(args) if len(chunks) > 1 else None
    tasks = stage_tasks(args.pipeline_model_parallel_size, stage, len(chunks), microbatches(args), group)
    held = [chunk_activations(args, chunk) for chunk in chunks]
    in_flight, peak, _ = peak_in_flight(tasks, [bytes_held for bytes_held, _ in held])
    memory = Memory(
        *model_memory(args, dense, experts),
        activations=peak + max(working for _, working in held),
        buffers=gathered_input(args) + shared_rotary(args),
        step=step_bytes(args, dense, experts),
    )
    return in_flight, memory


def rank_memory(args: MegatronArgs, rank: int) -> Memory:
    """Bytes on one rank of a run. args: Megatron's, after validation."""
    stage = place_of(rank, args, args.world_size).pipeline
    chunks = plan_pipeline(split_from_args(args))
    return stage_memory(args, stage, [chunk for chunk in chunks if chunk.pipeline_rank == stage])[1]


def evaluation_memory(args: MegatronArgs, rank: int) -> Memory:
    """The same where a model is only evaluated: weights, and logits of a micro-batch in their precision and in fp32."""
    logits = logits_bytes(args) * (element_size(args.params_dtype) + 4)
    return Memory(rank_memory(args, rank).weights, gradients=0.0, optimizer=0.0, activations=logits)
