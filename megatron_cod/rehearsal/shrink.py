"""The same job at toy width: depth, layout, batches and schemes stay, so that a laptop can run a rank of a 7B."""

from megatron_cod.args import MegatronArgs
from megatron_cod.estimate.shape import query_groups

_HEAD_DIM = 8


def shrink_flags(args: MegatronArgs) -> list[str]:
    """Flags that come last on the launch's command line and make it narrow.

    args: the validated arguments of the launch. Every width stays divisible by what divides it in the launch, and the
    ratio of query to key-value heads survives. Data is mocked: the run's tokens would not fit the vocabulary.
    """
    tp = args.tensor_model_parallel_size
    etp = args.expert_tensor_parallel_size or tp
    groups = query_groups(args)
    few = tp if groups % tp == 0 else groups
    heads = few * (2 if groups < args.num_attention_heads else 1)
    if heads % tp:  # fewer groups than tensor-parallel ranks
        heads = tp * few
    hidden = heads * _HEAD_DIM
    length = max(2 * tp * args.context_parallel_size, 32)
    length += -length % (2 * tp * args.context_parallel_size)
    values: dict[str, int | str] = {
        "hidden-size": hidden,
        "num-attention-heads": heads,
        "kv-channels": _HEAD_DIM,
        "ffn-hidden-size": 16 * tp,
        "seq-length": min(length, args.seq_length),
        "max-position-embeddings": min(length, args.max_position_embeddings),
        "tokenizer-type": "NullTokenizer",
        "vocab-size": 16 * tp - 2,
        "padded-vocab-size": 16 * tp,
        "micro-batch-size": args.micro_batch_size,
        "global-batch-size": args.global_batch_size,
    }
    if args.group_query_attention:
        values["num-query-groups"] = few
    if args.num_experts:
        values["moe-ffn-hidden-size"] = 16 * etp
    if args.moe_shared_expert_intermediate_size:
        values["moe-shared-expert-intermediate-size"] = 16 * tp
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]
