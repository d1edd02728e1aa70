"""The layouts that a launch can have on its GPUs: sizes that divide, and the arguments that a launch would have with each.

Megatron's validation is not run for each, which would take hours; ``suggest`` runs it for those that it prints.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from megatron_cod.args import MegatronArgs
from megatron_cod.estimate.shape import query_groups
from megatron_cod.planner.machine import Machine
from megatron_cod.planner.operators import is_unfused

_MICRO_BATCHES = (1, 2, 4, 8)
_MOST_CONTEXT = 16
_LENGTH_A_CONTEXT_RANK = 2048
"""Shorter parts of a sequence are not tried."""


@dataclass(frozen=True, order=True)
class Layout:
    """What ``--suggest`` chooses."""

    tensor: int
    pipeline: int
    virtual: int
    context: int
    expert: int
    micro_batch: int
    recompute: str
    """``--recompute-granularity``, or "none"; selective: attention's scores, where it writes them to memory."""

    def flags(self, has_experts: bool) -> list[str]:
        """The launch's flags for it."""
        words: list[Any] = [
            *("--tensor-model-parallel-size", self.tensor, "--pipeline-model-parallel-size", self.pipeline),
            *("--context-parallel-size", self.context, "--micro-batch-size", self.micro_batch),
        ]
        words += ["--sequence-parallel"] if self.tensor > 1 else []
        words += ["--num-virtual-stages-per-pipeline-rank", self.virtual] if self.virtual > 1 else []
        words += ["--expert-model-parallel-size", self.expert] if has_experts else []
        if self.recompute == "full":
            words += ["--recompute-granularity", "full", "--recompute-method", "uniform", "--recompute-num-layers", 1]
        if self.recompute == "selective":
            words += ["--recompute-granularity", "selective", "--recompute-modules", "core_attn"]
        return [str(word) for word in words]


CHOSEN = {
    "--tensor-model-parallel-size": 1,
    "--pipeline-model-parallel-size": 1,
    "--context-parallel-size": 1,
    "--micro-batch-size": 1,
    "--sequence-parallel": 0,
    "--num-virtual-stages-per-pipeline-rank": 1,
    "--num-layers-per-virtual-pipeline-stage": 1,
    "--microbatch-group-size-per-virtual-pipeline-stage": 1,
    "--expert-model-parallel-size": 1,
    "--recompute-granularity": 1,
    "--recompute-method": 1,
    "--recompute-num-layers": 1,
    "--recompute-modules": 9,
    "--recompute-activations": 0,
}
"""Flags of the launch that a layout replaces -> how many values follow, at most."""


def without_layout(command_line: list[str]) -> list[str]:
    """A launch's command line without the flags of its own layout."""
    kept: list[str] = []
    skipping = 0
    for word in command_line:
        name, has_value = word.split("=", 1)[0], "=" in word
        if name in CHOSEN:
            skipping = 0 if has_value else CHOSEN[name]
        elif skipping and not word.startswith("--"):
            skipping -= 1
        else:
            skipping = 0
            kept.append(word)
    return kept


def _divisors(number: int, most: int) -> list[int]:
    return [size for size in range(1, min(number, most) + 1) if number % size == 0]


def padded_vocabulary(args: MegatronArgs, tensor: int) -> int:
    """As Megatron pads it for so many tensor-parallel ranks; a size that already divides stays."""
    if args.padded_vocab_size % tensor == 0:
        return args.padded_vocab_size
    multiple = getattr(args, "make_vocab_size_divisible_by", 128) * tensor
    return -(-args.padded_vocab_size // multiple) * multiple


def changed_args(args: MegatronArgs, layout: Layout) -> MegatronArgs:
    """The validated arguments as they would be with another layout."""
    new: Any = copy.copy(args)
    replicas = args.world_size // (layout.tensor * layout.pipeline * layout.context)
    values = {
        "tensor_model_parallel_size": layout.tensor,
        "pipeline_model_parallel_size": layout.pipeline,
        "context_parallel_size": layout.context,
        "expert_model_parallel_size": layout.expert,
        "expert_tensor_parallel_size": layout.tensor if not args.num_experts else _expert_tensor(args, layout),
        "data_parallel_size": replicas,
        "micro_batch_size": layout.micro_batch,
        "sequence_parallel": layout.tensor > 1,
        "num_virtual_stages_per_pipeline_rank": layout.virtual if layout.virtual > 1 else None,
        "num_layers_per_virtual_pipeline_stage": None,
        "virtual_pipeline_model_parallel_size": layout.virtual if layout.virtual > 1 else None,
        "microbatch_group_size_per_vp_stage": layout.pipeline,
        "overlap_p2p_comm": layout.virtual > 1,
        "padded_vocab_size": padded_vocabulary(args, layout.tensor),
        "recompute_granularity": None if layout.recompute == "none" else layout.recompute,
        "recompute_method": "uniform" if layout.recompute == "full" else None,
        "recompute_num_layers": 1 if layout.recompute == "full" else None,
        "recompute_modules": ["core_attn"] if layout.recompute == "selective" else None,
        "distribute_saved_activations": False,
        "tp_comm_overlap": args.tp_comm_overlap and layout.tensor > 1,
    }
    for name, value in values.items():
        setattr(new, name, value)
    return new


def _expert_tensor(args: MegatronArgs, layout: Layout) -> int:
    """Kept where the launch sets it; Megatron's default is the tensor-parallel size."""
    own = args.expert_tensor_parallel_size
    return layout.tensor if own == args.tensor_model_parallel_size else own or layout.tensor


def _widths(args: MegatronArgs) -> list[int]:
    """What a tensor-parallel size has to divide."""
    widths = [args.num_attention_heads, args.hidden_size, args.seq_length]
    dense = not args.num_experts or args.moe_layer_freq != 1
    widths += [args.ffn_hidden_size] if dense else []
    return widths


def tensor_sizes(args: MegatronArgs, machine: Machine) -> list[int]:
    """Within a node."""
    sizes = _divisors(args.world_size, machine.gpus_per_node)
    groups = query_groups(args)
    fits = [size for size in sizes if all(width % size == 0 for width in _widths(args))]
    return [size for size in fits if groups % size == 0 or size % groups == 0]


def context_sizes(args: MegatronArgs) -> list[int]:
    """Powers of two that leave parts of a useful length; 1 where the launch's attention allows no other."""
    if args.attention_dropout:
        return [1]
    most = min(_MOST_CONTEXT, max(1, args.seq_length // _LENGTH_A_CONTEXT_RANK))
    return [size for size in (1, 2, 4, 8, 16) if size <= most and args.seq_length % (2 * size) == 0]


def _expert_sizes(args: MegatronArgs, ranks: int) -> list[int]:
    """ranks: of one pipeline stage, over the expert-tensor size."""
    if not args.num_experts:
        return [1]
    return [size for size in _divisors(args.num_experts, args.num_experts) if ranks % size == 0]


def _cuts(args: MegatronArgs) -> list[tuple[int, int]]:
    """(stages, virtual stages) that divide the layers, embedding and loss among them where the launch counts them."""
    units = args.num_layers
    units += bool(args.account_for_embedding_in_pipeline_split) + bool(args.account_for_loss_in_pipeline_split)
    cuts = [(stages, units // stages) for stages in _divisors(units, args.world_size)]
    return [(stages, one) for stages, each in cuts for one in (_divisors(each, each) if stages > 1 else [1])]


def layouts(args: MegatronArgs, machine: Machine) -> Iterator[Layout]:
    """Every layout whose sizes divide."""
    world, batch = args.world_size, args.global_batch_size
    for tensor in tensor_sizes(args, machine):
        for stages, virtual in _cuts(args):
            for context in context_sizes(args):
                ranks = tensor * stages * context
                if world % ranks or args.seq_length % (tensor * context):
                    continue
                replicas = world // ranks
                for micro in _MICRO_BATCHES:
                    if batch % (micro * replicas):
                        continue
                    count = batch // (micro * replicas)
                    if count < stages or (virtual > 1 and count % stages):
                        continue
                    yield from _with_experts(args, Layout(tensor, stages, virtual, context, 1, micro, "none"))


def _with_experts(args: MegatronArgs, layout: Layout) -> Iterator[Layout]:
    """The layout with each size of expert parallelism and each kind of recomputation."""
    etp = _expert_tensor(args, layout) if args.num_experts else 1
    stage_ranks = args.world_size // layout.pipeline
    if stage_ranks % etp:
        return
    for expert in _expert_sizes(args, stage_ranks // etp):
        for kind in ("none", "selective", "full") if is_unfused(args) else ("none", "full"):
            yield replace(layout, expert=expert, recompute=kind)
