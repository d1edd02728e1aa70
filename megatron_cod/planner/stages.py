"""The cost of each model chunk for one micro-batch: its layers, the embedding, the loss, layers that predict ahead."""

from megatron_cod.args import MegatronArgs
from megatron_cod.estimate.activations import logits_bytes
from megatron_cod.estimate.parameters import moe_pattern
from megatron_cod.estimate.shape import head_dim, query_groups
from megatron_cod.pipeline import StagePlan
from megatron_cod.planner.collectives import all_reduce, gather
from megatron_cod.planner.layer import Setting, layer_cost
from megatron_cod.planner.operators import Product
from megatron_cod.planner.split import NOTHING, Cost, Split

LOSS_FORWARD, LOSS_BACKWARD = 14, 8
"""Bytes a logit: cast to fp32, its maximum, its exponential and sum in the forward; softmax to gradient in the backward
(``_VocabParallelCrossEntropy`` of megatron/core/tensor_parallel/cross_entropy.py)."""


def recomputed_share(args: MegatronArgs, layers: int) -> float:
    """Which share of a chunk's layers full recomputation makes again."""
    if args.recompute_granularity != "full" or args.recompute_method != "block" or not layers:
        return 1.0
    return min(args.recompute_num_layers or 1, layers) / layers


def embedding_cost(to: Setting) -> Cost:
    """Rows looked up and summed over tensor-parallel ranks; in the backward added to the gradient."""
    group = to.places.tensor
    collective = gather if to.args.sequence_parallel else all_reduce
    exchanged = Split(tensor=collective(to.machine, group, to.stream))
    back = exchanged if to.args.sequence_parallel else Split()
    there = to.kernels.moved(2 * to.stream)
    added = to.kernels.moved(to.stream + 2 * to.tokens * to.args.hidden_size * to.kernels.gradient)
    return Cost(exchanged + Split(head=there), back + Split(head=added))


def head_cost(to: Setting) -> Cost:
    """Final norm, output layer and loss."""
    args, run = to.args, to.kernels.in_bf16()
    product = Product(to.tokens, args.padded_vocab_size / args.tensor_model_parallel_size, args.hidden_size)
    logits, norm = logits_bytes(args), run.moved(to.own_stream)
    there = run.forward(product) + run.moved(LOSS_FORWARD * logits) + 2 * norm
    weights = run.weight_gradient(product)
    back = run.forward(product) + weights + run.moved(LOSS_BACKWARD * logits) + 3 * norm
    once = gather(to.machine, to.places.tensor, to.stream)
    if args.sequence_parallel:
        late = max(0.0, once - weights)
        cost = Cost(Split(head=there, tensor=once), Split(head=back, tensor=late), 2 * once - late)
    else:
        cost = Cost(Split(head=there), Split(head=back, tensor=max(0.0, 2 * once - weights)))
    few = all_reduce(to.machine, to.places.tensor, 4 * to.tokens)
    return cost + Cost(Split(tensor=3 * few), Split())


def ahead_cost(to: Setting, mixture: bool) -> Cost:
    """A layer that predicts one more token: a layer, the projection of two streams to one, a head of its own."""
    product = Product(to.tokens, to.args.hidden_size / to.args.tensor_model_parallel_size, 2 * to.args.hidden_size)
    once = to.kernels.forward(product)
    projection = Cost(Split(products=once), Split(products=once + to.kernels.weight_gradient(product)))
    return layer_cost(to, mixture) + projection + head_cost(to) + embedding_cost(to)


def chunk_cost(to: Setting, chunk: StagePlan, layers: dict[bool, Cost]) -> Cost:
    """One chunk. layers: the cost of a layer without and with experts."""
    pattern = moe_pattern(to.args)
    mixtures = [pattern[number - 1] for number in chunk.layers]
    cost = sum((layers[kind].times(mixtures.count(kind)) for kind in set(mixtures)), NOTHING)
    cost += embedding_cost(to) if chunk.embedding else NOTHING
    cost += head_cost(to) if chunk.loss else NOTHING
    return cost + (ahead_cost(to, pattern[-1]).times(len(chunk.mtp)) if chunk.mtp else NOTHING)


def layer_costs(to: Setting, chunks: list[StagePlan]) -> dict[bool, Cost]:
    """The cost of a layer, by whether it is a mixture of experts."""
    share = recomputed_share(to.args, max(len(chunk.layers) for chunk in chunks))
    return {kind: layer_cost(to, kind, share) for kind in set(moe_pattern(to.args))}


def model_flops(args: MegatronArgs) -> float:
    """Of one step, forward and backward, without recomputation: what the log of a run counts for its MFU.

    6 for each weight that a token is multiplied with but the router's, and 6 s a d a layer for attention, which is causal
    (``num_floating_point_operations`` of megatron/training/training.py).
    """
    hidden, dim = args.hidden_size, head_dim(args)
    queries, keys = args.num_attention_heads * dim, query_groups(args) * dim
    gate = 2 if getattr(args, "attention_output_gate", False) else 1
    attention = hidden * (gate * queries + 2 * keys) + queries * hidden
    up = 3 if args.swiglu else 2
    dense = up * hidden * args.ffn_hidden_size
    pattern = moe_pattern(args)
    kinds = pattern + [pattern[-1]] * (args.mtp_num_layers or 0)
    mixture = 0
    if args.num_experts:
        width = (args.moe_ffn_hidden_size or args.ffn_hidden_size) * args.moe_router_topk
        mixture = up * hidden * (width + (args.moe_shared_expert_intermediate_size or 0))
    weights = sum(attention + (mixture if kind else dense) for kind in kinds)
    heads = 1 + (args.mtp_num_layers or 0)
    weights += heads * hidden * args.padded_vocab_size + (heads - 1) * 2 * hidden * hidden
    per_token = 6.0 * weights + 6.0 * len(kinds) * args.seq_length * queries
    return per_token * args.global_batch_size * args.seq_length
