"""Bytes a rank needs: weights, gradients and optimizer states by count, activations by estimate.

docs/rehearsal.md has the formulas. Not in them: buffers of NCCL and of the allocator, and fragmentation.
"""

from dataclasses import dataclass
from typing import Any

import torch

from megatron_cod.estimate.parameters import moe_pattern
from megatron_cod.estimate.shape import head_dim, query_groups
from megatron_cod.pipeline import StagePlan

GIB = 1 << 30


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank."""

    weights: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations


def _size(dtype: Any) -> int:
    return dtype.itemsize if isinstance(dtype, torch.dtype) else {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1}[dtype]


def optimizer_bytes(args: Any) -> int:
    """Bytes of optimizer state a parameter: fp32 main weights where the weights are not fp32, and the moments.

    An upper bound for muon, which has Adam's two moments only where it leaves the work to Adam, and else one.
    """
    main = 4 if _size(args.params_dtype) < 4 else 0
    if args.optimizer == "sgd":
        return main + (4 if args.sgd_momentum else 0)
    if args.optimizer == "lion":
        return main + 4
    if args.use_precision_aware_optimizer:
        main = _size(args.main_params_dtype) if main else 0
        return main + _size(args.exp_avg_dtype) + _size(args.exp_avg_sq_dtype)
    return main + 8


def checkpoint_bytes(args: Any, parameters: int) -> int:
    """Bytes of a checkpoint of a model with so many parameters: weights, and optimizer states unless left out."""
    return parameters * (_size(args.params_dtype) + (0 if args.no_save_optim else optimizer_bytes(args)))


def model_memory(args: Any, dense: int, experts: int) -> tuple[float, float, float]:
    """Bytes of weights, gradients and optimizer states for so many parameters on a rank outside and in the experts.

    With the distributed optimizer its states are spread over the data-parallel and context-parallel replicas; those of
    experts over the replicas of the experts.
    """
    weight = _size(args.params_dtype)
    gradient = 4 if args.accumulate_allreduce_grads_in_fp32 else weight
    if args.use_precision_aware_optimizer:
        gradient = _size(args.main_grads_dtype)
    shards, expert_shards = 1, 1
    if args.use_distributed_optimizer:
        etp = args.expert_tensor_parallel_size or args.tensor_model_parallel_size
        shards = args.data_parallel_size * args.context_parallel_size
        expert_shards = args.world_size // (etp * args.expert_model_parallel_size * args.pipeline_model_parallel_size)
    states = optimizer_bytes(args) * (dense / shards + experts / expert_shards)
    return weight * (dense + experts), gradient * (dense + experts), states


def layer_parts(args: Any, mixture: bool) -> dict[str, float]:
    """Bytes one micro-batch leaves in one layer for its backward pass, by the module that would recompute them.

    Flash attention and a fused activation function: nothing of size s x s, the gated product once. "input" is what full
    recomputation keeps.
    """
    tp, element = args.tensor_model_parallel_size, _size(args.params_dtype)
    tokens = args.seq_length * args.micro_batch_size / args.context_parallel_size
    local = tokens / (tp if args.sequence_parallel else 1)  # where sequence parallelism cuts, norms and residuals
    stream = local * args.hidden_size * element
    dim = head_dim(args)
    queries, keys = args.num_attention_heads * dim / tp, max(query_groups(args) / tp, 1) * dim
    rotary = args.position_embedding_type in ("rope", "yarn", "mrope")
    up = 3 if args.swiglu else 2  # what goes into the activation function and what comes out
    parts = {
        "input": stream,
        "residual": stream,
        "layernorm": 2 * stream,
        # Values stay a view of the whole projection; rotary embeddings make new queries and keys beside it.
        "qkv": tokens * (queries + 2 * keys + (queries + keys if rotary else 0)) * element,
        "core_attn": tokens * args.num_attention_heads / tp * 4,  # the log-sum-exp of flash attention
        "projection": tokens * queries * element,
        "dropout": 2 * local * args.hidden_size if args.hidden_dropout else 0.0,
    }
    if str(getattr(args.attention_backend, "name", args.attention_backend)) == "unfused":
        scores = args.micro_batch_size * args.num_attention_heads / tp * args.seq_length**2
        parts["core_attn"] = scores * (2 * element + (1 if args.attention_dropout else 0))
    if not mixture:
        return parts | {"mlp": tokens * up * args.ffn_hidden_size / tp * element}
    etp = args.expert_tensor_parallel_size or tp
    routed = tokens / tp * etp * args.moe_router_topk  # balanced: every rank gets an equal share
    ffn = (args.moe_ffn_hidden_size or args.ffn_hidden_size) / etp
    parts["moe"] = routed * (2 * args.hidden_size + (up - 1) * ffn) * element + local * args.num_experts * 4
    parts["moe_act"] = routed * ffn * element
    if args.moe_shared_expert_intermediate_size:
        parts["shared_experts"] = tokens * up * args.moe_shared_expert_intermediate_size / tp * element
    return parts


def _kept(args: Any, parts: dict[str, float]) -> float:
    """What selective recomputation leaves."""
    if args.recompute_granularity != "selective":
        return sum(parts.values())
    dropped = set(args.recompute_modules or ["core_attn"])
    if "moe" in dropped:
        dropped |= {"moe_act", "shared_experts"}
    return sum(size for name, size in parts.items() if name not in dropped)


def _head_bytes(args: Any) -> float:
    """Final norm, logits in the model's precision and their fp32 softmax, for one micro-batch."""
    tp, element = args.tensor_model_parallel_size, _size(args.params_dtype)
    tokens = args.seq_length * args.micro_batch_size / args.context_parallel_size
    local = tokens / (tp if args.sequence_parallel else 1)
    return 2 * local * args.hidden_size * element + tokens * args.padded_vocab_size / tp * (element + 4)


def chunk_activations(args: Any, chunk: StagePlan) -> tuple[float, float]:
    """(bytes that one micro-batch holds in this chunk, bytes needed beside them while its backward pass runs)."""
    pattern = moe_pattern(args)
    layers = [layer_parts(args, pattern[number - 1]) for number in chunk.layers]
    layers += [layer_parts(args, pattern[-1]) for _ in chunk.mtp]
    whole = [_kept(args, parts) for parts in layers]
    working = 0.0
    if args.recompute_granularity == "full" and layers:
        together = args.recompute_num_layers or 1
        working = max(whole) * (together if args.recompute_method == "uniform" else 1)
        share = args.tensor_model_parallel_size if args.distribute_saved_activations else 1
        entry = layers[0]["input"] / share
        if args.recompute_method == "uniform":
            held = -(-len(layers) // together) * entry
        else:  # block: the first ones of the chunk
            held = min(together, len(layers)) * entry + sum(whole[together:])
    else:
        held = sum(whole)
    head = _head_bytes(args)
    stream = layer_parts(args, False)["input"]
    held += len(chunk.mtp) * (head + 6 * stream)  # two norms, the projection of both, and its own logits
    return held + (head if chunk.loss else 0.0), working
