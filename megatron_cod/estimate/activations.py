"""Bytes that the passes of a step hold, by estimate: what layers keep for their backward, and what a backward needs beside.

Each term is one function; docs/rehearsal.md has the formulas, and the peaks of an emulated device to compare with
(tests/cuda/test_memory.py). t: tokens of this rank, e: bytes an element, h: hidden size.
"""

from megatron_cod.args import MegatronArgs
from megatron_cod.estimate.parameters import moe_pattern
from megatron_cod.estimate.shape import element_size, head_dim, query_groups
from megatron_cod.pipeline import StagePlan
from megatron_cod.schemes.design import design_from_args

WORKSPACE = 32 << 20
"""Scratch memory of one matrix product: cuBLAS' workspace as torch makes it on a Hopper, given back afterwards."""


def _tokens(args: MegatronArgs) -> float:
    return args.seq_length * args.micro_batch_size / args.context_parallel_size


def _whole_stream(args: MegatronArgs) -> float:
    """t h e: the residual stream of all of a rank's tokens."""
    return _tokens(args) * args.hidden_size * element_size(args.params_dtype)


def _stream(args: MegatronArgs) -> float:
    """The same where sequence parallelism cuts: norms and residuals."""
    return _whole_stream(args) / (args.tensor_model_parallel_size if args.sequence_parallel else 1)


def gathered_input(args: MegatronArgs) -> float:
    """Buffer for the gathered input of products under sequence parallelism, t h e; one, kept between steps.

    Megatron's ``get_global_memory_buffer().get_tensor(..., "mpu")`` in tensor_parallel/layers.py.
    """
    return _whole_stream(args) if args.sequence_parallel else 0.0


def _rotary(args: MegatronArgs) -> bool:
    return args.position_embedding_type in ("rope", "yarn", "mrope")


def _angles(args: MegatronArgs) -> float:
    """s d: angles of one sequence."""
    return args.seq_length / args.context_parallel_size * head_dim(args) * args.rotary_percent


def layer_rotary(args: MegatronArgs) -> float:
    """cos and sin that Megatron's unfused rotary keeps in every layer, for queries and for keys: 4 s d e, split by nothing.

    ``_apply_rotary_pos_emb_bshd`` in megatron/core/models/common/embeddings/rope_utils.py. Not with Transformer Engine's
    fused kernel, nor in our own attention, whose layers share their tables.
    """
    if not _rotary(args) or args.apply_rope_fusion or args.transformer_impl == "local":
        return 0.0
    return 4 * _angles(args) * element_size(args.params_dtype)


def shared_rotary(args: MegatronArgs) -> float:
    """The angles in fp32, and on the torch and apex backends their cos and two sines, once: s d (4 + 3 e).

    ``backends/torch_rotary.py``, which keeps its tables from step to step.
    """
    if not _rotary(args):
        return 0.0
    is_own = args.transformer_impl == "local" and not args.apply_rope_fusion
    return _angles(args) * (4 + (3 * element_size(args.params_dtype) if is_own else 0))


def _attention_parts(args: MegatronArgs) -> dict[str, float]:
    tp, element, tokens = args.tensor_model_parallel_size, element_size(args.params_dtype), _tokens(args)
    dim = head_dim(args)
    queries, keys = args.num_attention_heads * dim / tp, max(query_groups(args) / tp, 1) * dim
    parts = {
        # Values stay a view of the whole projection; rotary embeddings make new queries and keys beside it.
        "qkv": tokens * (queries + 2 * keys + (queries + keys if _rotary(args) else 0)) * element,
        "rotary": layer_rotary(args),
        "core_attn": tokens * args.num_attention_heads / tp * 4,  # the log-sum-exp of flash attention
        "projection": tokens * queries * element,
    }
    if str(getattr(args.attention_backend, "name", args.attention_backend)) == "unfused":
        scores = args.micro_batch_size * args.num_attention_heads / tp * args.seq_length**2
        parts["core_attn"] = scores * (2 * element + (1 if args.attention_dropout else 0))
    if args.context_parallel_size > 1 and args.transformer_impl == "local":
        parts |= _gathering(args, parts, tokens * element, queries, keys)
    return parts


def _gathering(
    args: MegatronArgs, parts: dict[str, float], size: float, queries: float, keys: float
) -> dict[str, float]:
    """Context parallelism on torch's attention: keys and values of all ranks in place of this rank's, and outputs by chunk.

    size: bytes of one channel of this rank's tokens. queries, keys: channels.
    """
    everywhere = args.context_parallel_size * 2 * keys
    return {
        "qkv": size * (queries if _rotary(args) else queries + 2 * keys),
        "core_attn": parts["core_attn"] + size * (everywhere + queries),
    }


def _up(args: MegatronArgs) -> int:
    """Widths of f that go into the activation function."""
    return 2 if args.swiglu else 1


def _moe_parts(args: MegatronArgs) -> dict[str, float]:
    """Experts keep their rows once and what goes into and comes out of the activation function.

    Not their outputs: the router's probabilities are multiplied in within the activation function
    (``weighted_bias_swiglu_impl``), and what restores the order of rows keeps only places.
    """
    element, rows, ffn = element_size(args.params_dtype), routed_rows(args), expert_ffn(args)
    parts = {
        "moe": rows * (args.hidden_size + _up(args) * ffn) * element + router_scores(args),
        "moe_act": rows * ffn * element,
    }
    if args.moe_shared_expert_intermediate_size:
        width = args.moe_shared_expert_intermediate_size / args.tensor_model_parallel_size
        parts["shared_experts"] = _tokens(args) * (_up(args) + 1) * width * element
    return parts


def router_scores(args: MegatronArgs) -> float:
    """A score in fp32 for each token of this rank and each expert."""
    tokens = _stream(args) / args.hidden_size / element_size(args.params_dtype)
    return 4 * tokens * args.num_experts


def expert_ffn(args: MegatronArgs) -> float:
    """Feed-forward width of one expert on this rank."""
    etp = args.expert_tensor_parallel_size or args.tensor_model_parallel_size
    return (args.moe_ffn_hidden_size or args.ffn_hidden_size) / etp


def routed_rows(args: MegatronArgs) -> float:
    """Rows of all experts of this rank together: balanced, so that ranks get equal shares; no more than their capacity."""
    tp, factor = args.tensor_model_parallel_size, args.moe_expert_capacity_factor
    etp = args.expert_tensor_parallel_size or tp
    is_cut = factor is not None and (factor < 1 or args.moe_pad_expert_input_to_capacity)
    return _tokens(args) / tp * etp * args.moe_router_topk * (factor if factor is not None and is_cut else 1)


def layer_parts(args: MegatronArgs, mixture: bool) -> dict[str, float]:
    """Bytes one micro-batch leaves in one layer for its backward pass, by the module that would recompute them.

    Flash attention and a fused activation function: nothing of size s x s, the gated product once. "input" is what full
    recomputation keeps.
    """
    stream = _stream(args)
    streams = design_from_args(args).streams
    parts = {
        "input": stream * streams,
        "residual": stream * streams,
        "streams": 0.0 if streams == 1 else _beside_streams(args, streams),
        "layernorm": 2 * stream,
        "dropout": 2 * stream / element_size(args.params_dtype) if args.hidden_dropout else 0.0,
    }
    parts |= _attention_parts(args)
    if mixture:
        return parts | _moe_parts(args)
    width = (_up(args) + 1) * args.ffn_hidden_size / args.tensor_model_parallel_size
    return parts | {"mlp": _tokens(args) * width * element_size(args.params_dtype)}


def _beside_streams(args: MegatronArgs, streams: int) -> float:
    """Of each branch: what it reads and writes, and in lower precision twice all streams in fp32, for their weights."""
    element = element_size(args.params_dtype)
    wide = 2 * streams * 4 / element if element < 4 else 0.0
    return 2 * (2 + wide) * _stream(args)


def _kept(args: MegatronArgs, parts: dict[str, float]) -> float:
    """What selective recomputation leaves."""
    if args.recompute_granularity != "selective":
        return sum(parts.values())
    dropped = set(args.recompute_modules or ["core_attn"])
    if "moe" in dropped:
        dropped |= {"moe_act", "shared_experts"}
    return sum(size for name, size in parts.items() if name not in dropped)


def weight_gradient(args: MegatronArgs, rows: float) -> float:
    """The gradient of a weight of ``rows`` x h in its own precision, until it is added to the main gradient.

    None where the product adds it itself (Apex's ``fused_weight_gradient_mlp_cuda``, Transformer Engine).
    """
    if args.gradient_accumulation_fusion:
        return 0.0
    return rows * args.hidden_size * element_size(args.params_dtype)


def product_backward(args: MegatronArgs, rows: float, share: float = 1.0) -> float:
    """In flight while the gradients of a product of a weight of ``rows`` x h are made, beside what was kept for it.

    The gradient of its (gathered) input, under sequence parallelism this rank's part of it too, the weight's gradient and
    the product's workspace (``LinearWithGradAccumulationAndAsyncCommunication.backward``). share: of the rank's tokens.
    """
    part = _stream(args) if args.sequence_parallel else 0.0
    return share * (_whole_stream(args) + part) + weight_gradient(args, rows) + WORKSPACE


def layer_backward(args: MegatronArgs, mixture: bool) -> float:
    """Beside what is kept, while the first product of a layer's MLP has its gradients made: the widest one of a layer.

    By then the second product's input is gone, its output's gradient is there.
    """
    element, tokens = element_size(args.params_dtype), _tokens(args)
    if mixture:  # one expert after the other, when the gradients of all their outputs are there
        rows, ffn = routed_rows(args), expert_ffn(args)
        share = args.expert_model_parallel_size / args.num_experts
        beside = _stream(args) + rows * args.hidden_size * element - rows * share * ffn * element
        return beside + product_backward(args, _up(args) * ffn, rows * share / tokens)
    ffn = args.ffn_hidden_size / args.tensor_model_parallel_size
    return _stream(args) - tokens * ffn * element + product_backward(args, _up(args) * ffn)


def logits_bytes(args: MegatronArgs) -> float:
    """Logits of one micro-batch in one byte an element."""
    return _tokens(args) * args.padded_vocab_size / args.tensor_model_parallel_size


def head_kept(args: MegatronArgs) -> float:
    """From the loss to its backward: input and output of the final norm, and the fp32 softmax, which the loss keeps."""
    return 2 * _stream(args) + 4 * logits_bytes(args)


def head_working(args: MegatronArgs) -> float:
    """Beside that: logits in the model's precision in the forward; in the backward the output layer's product, when the
    softmax has become a gradient in the model's precision."""
    element = element_size(args.params_dtype)
    low = logits_bytes(args) * element if element < 4 else 0.0
    softmax = 4 * logits_bytes(args) if element < 4 else 0.0
    return max(low, low - softmax + product_backward(args, args.padded_vocab_size / args.tensor_model_parallel_size))


def _layers_held(args: MegatronArgs, layers: list[dict[str, float]]) -> tuple[float, float]:
    """(bytes of a micro-batch between its passes, bytes made again while a layer's backward runs)."""
    whole, kept = [sum(parts.values()) for parts in layers], [_kept(args, parts) for parts in layers]
    if args.recompute_granularity != "full" or not layers:
        return sum(kept), max((all_ - some for all_, some in zip(whole, kept, strict=True)), default=0.0)
    together = args.recompute_num_layers or 1
    share = args.tensor_model_parallel_size if args.distribute_saved_activations else 1
    entry = layers[0]["input"] / share
    again = max(whole) - entry  # the input of the first one is what was kept
    if args.recompute_method == "uniform":
        return -(-len(layers) // together) * entry, again + (together - 1) * max(whole)
    # block: the first ones of the chunk
    return min(together, len(layers)) * entry + sum(whole[together:]), again


def chunk_activations(args: MegatronArgs, chunk: StagePlan) -> tuple[float, float]:
    """(bytes that one micro-batch holds in this chunk, bytes needed beside them while its passes run)."""
    pattern = moe_pattern(args)
    mixtures = [pattern[number - 1] for number in chunk.layers] + [pattern[-1] for _ in chunk.mtp]
    held, again = _layers_held(args, [layer_parts(args, mixture) for mixture in mixtures])
    heads = (len(chunk.mtp) + (1 if chunk.loss else 0)) * head_kept(args)
    held += len(chunk.mtp) * 6 * _stream(args)  # two norms, the projection of both
    # While layers have their backward, the loss has had its own.
    moments = [again + max(layer_backward(args, mixture) for mixture in set(mixtures)) - heads] if mixtures else []
    moments += [head_working(args)] if heads else []
    return held + heads, max(moments, default=0.0)
