"""Checks of the arguments alone, which come first and name the flags. The rehearsal makes them too."""

from typing import Any

from megatron.core.transformer.enums import AttnBackend, AttnMaskType

from megatron_cod.args import MegatronArgs
from megatron_cod.backends.torch_attention import SDPACoreAttention
from megatron_cod.checkpoint.selection import checkpoint_to_load
from megatron_cod.errors import UserError
from megatron_cod.estimate.shape import head_dim, microbatches, query_groups, virtual_group
from megatron_cod.pipeline import plan_pipeline, split_from_args
from megatron_cod.schemes.design import design_from_args
from megatron_cod.training.flags.batch_sizes import batch_sizes
from megatron_cod.training.flags.cuda_graphs import check_graphs
from megatron_cod.training.flags.low_precision import check_low_precision
from megatron_cod.training.flags.schedule_checks import check_batches


def check_layout(args: MegatronArgs, world_size: int) -> None:
    """UserError, naming the flags, for layouts that cannot be built.

    args: the plain parse of the command line. world_size: processes the launcher started.
    """
    _check_sizes(args)
    design = design_from_args(args)
    if args.heterogeneous_layers_config_path and not design.is_stock:
        # Reported before Megatron reads the file, whose errors are its own.
        raise UserError(f"--norm-scheme {args.norm_scheme} does not support --heterogeneous-layers-config-path yet")
    tp, pp, cp = args.tensor_model_parallel_size, args.pipeline_model_parallel_size, args.context_parallel_size
    model_ranks = tp * pp * cp
    if world_size % model_ranks:
        fitting = world_size // model_ranks * model_ranks or model_ranks
        raise UserError(
            f"{world_size} processes were started, but the layout takes a multiple of {model_ranks} "
            f"(--tensor-model-parallel-size {tp} x --pipeline-model-parallel-size {pp} x --context-parallel-size {cp}); "
            f"start {fitting}, or change the layout (megatron-cod train --nproc {fitting})"
        )
    _check_context(args)
    if args.num_layers:
        plan_pipeline(split_from_args(args))
    if args.num_attention_heads and args.num_attention_heads % tp:
        raise UserError(
            f"--num-attention-heads {args.num_attention_heads} does not divide over --tensor-model-parallel-size {tp}"
        )
    check_batches(args, world_size // model_ranks)


def _check_sizes(args: MegatronArgs) -> None:
    """UserError for sizes below 1, before anything divides by them."""
    for name in (
        *("num_layers", "hidden_size", "num_attention_heads", "seq_length", "micro_batch_size", "global_batch_size"),
        *("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size"),
        *("expert_model_parallel_size", "expert_tensor_parallel_size", "num_virtual_stages_per_pipeline_rank"),
        "num_layers_per_virtual_pipeline_stage",
    ):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value} must be at least 1")


def _check_context(args: MegatronArgs) -> None:
    """UserError for flags without context parallelism. args: the plain parse."""
    cp = args.context_parallel_size
    if args.hybrid_context_parallel:
        raise UserError("--hybrid-context-parallel is not supported; --context-parallel-size alone is")
    if args.seq_length and cp > 1 and args.seq_length % (2 * cp):
        raise UserError(
            f"--seq-length {args.seq_length} must be a multiple of {2 * cp}: each of the {cp} ranks of "
            f"--context-parallel-size takes two chunks of it"
        )


def _check_attention(config: Any) -> None:
    """UserError for what the torch backend's attention refuses when it is built."""
    if config.transformer_impl == "local" and (
        config.attention_backend != AttnBackend.unfused or config.context_parallel_size > 1
    ):
        SDPACoreAttention(config, 1, AttnMaskType.causal, "self")
    if config.transformer_impl == "transformer_engine" and config.attention_backend == AttnBackend.flash:
        _check_flash_attention()


def _check_flash_attention() -> None:
    from transformer_engine.pytorch.attention.dot_product_attention.utils import FlashAttentionUtils as flash

    if not (flash.is_installed or flash.v3_is_installed or flash.v4_is_installed):
        raise UserError(
            "--attention-backend flash: Transformer Engine has none of its own, and no version of flash-attn that it takes "
            "is installed; omit the flag for cuDNN's attention"
        )


_ROWS = "the padded vocabulary"


def _check_divisions(args: MegatronArgs) -> None:
    """UserError for sizes that Megatron would only refuse once it builds the model or starts the schedule."""
    tp, flag = args.tensor_model_parallel_size, "--tensor-model-parallel-size"
    etp = args.expert_tensor_parallel_size or tp
    rows = (args.num_attention_heads + 2 * query_groups(args)) * head_dim(args)
    sizes = [
        (_ROWS, args.padded_vocab_size, tp, flag),
        ("--ffn-hidden-size", args.ffn_hidden_size, tp, flag),
        ("--num-query-groups times --kv-channels, with the queries:", rows, tp, flag),
    ]
    if args.num_experts:
        expert_flag = "--expert-tensor-parallel-size"
        sizes.append(("--moe-ffn-hidden-size", args.moe_ffn_hidden_size or args.ffn_hidden_size, etp, expert_flag))
        sizes.append(
            ("--num-experts", args.num_experts, args.expert_model_parallel_size, "--expert-model-parallel-size")
        )
        grid = etp * args.expert_model_parallel_size * args.pipeline_model_parallel_size
        sizes.append(("--world-size", args.world_size, grid, "expert-tensor x expert x pipeline parallel size"))
    if args.moe_shared_expert_intermediate_size:
        sizes.append(("--moe-shared-expert-intermediate-size", args.moe_shared_expert_intermediate_size, tp, flag))
    if args.sequence_parallel:
        sizes.append(("--seq-length", args.seq_length, tp * args.context_parallel_size, f"{flag} (sequence parallel)"))
    groups = query_groups(args)
    if groups % tp and tp % groups:
        raise UserError(f"--num-query-groups {groups} and {flag} {tp}: neither divides the other")
    for name, size, divisor, what in sizes:
        if size is not None and size % divisor:
            more = _rows_for(args, -(-size // divisor) * divisor) if name == _ROWS else ""
            raise UserError(f"{name} {size} does not divide over {what} {divisor}{more}")


def _check_interleaving(args: MegatronArgs) -> None:
    """UserError where the interleaved schedule would refuse its micro-batches at the first step."""
    if args.virtual_pipeline_model_parallel_size is None:
        return
    stages, group = args.pipeline_model_parallel_size, virtual_group(args)
    for _, batch in batch_sizes(args).stages:
        count = microbatches(args, batch)
        rest = count % group
        if not stages <= group <= count or 0 < rest < stages:
            raise UserError(
                f"virtual stages take {count} micro-batches a step in groups of {group}: there must be at least "
                f"{stages} (--pipeline-model-parallel-size), and none or at least {stages} left over, not {rest}; "
                f"a batch of {batch} / (--micro-batch-size {args.micro_batch_size} x "
                f"{args.data_parallel_size} replicas) gives {count}"
            )


def check_vocabulary(args: MegatronArgs, tokenizer: Any) -> int:
    """Rows of the model's vocabulary; UserError where the tokenizer has more. args: after Megatron's validation."""
    tokenizer_size = getattr(tokenizer, "vocab_size", None)
    model_size = args.padded_vocab_size or args.vocab_size
    if tokenizer_size and model_size and tokenizer_size > model_size:
        tp = args.tensor_model_parallel_size
        rows = -(-tokenizer_size // tp) * tp
        remedy = _rows_for(args, rows) if args.padded_vocab_size else f": give --vocab-size {tokenizer_size}"
        raise UserError(f"the tokenizer has {tokenizer_size} tokens, the model's vocabulary only {model_size}{remedy}")
    return model_size


def correct_vocab_size(args: MegatronArgs, tokenizer: Any) -> list[str]:
    """Raise ``args.vocab_size`` to the tokenizer's own size, and return a line about it.

    It may be that of a recipe for another tokenizer. Only ``NullTokenizer`` reads it, but an export and the analysis keep
    so many rows of the padded vocabulary.
    """
    size, given = getattr(tokenizer, "vocab_size", None), args.vocab_size
    if not (size and given and given < size):
        return []
    args.vocab_size = size
    return [f"--vocab-size {given} is replaced by {size}, the size of the tokenizer"]


def _rows_for(args: MegatronArgs, rows: int) -> str:
    """How to get so many rows: those of a checkpoint are as many as it has, but for an import, which can be made again."""
    if checkpoint_to_load(args) is None:
        return f": give --padded-vocab-size {rows}"
    return (
        f": import the model again with --padded-vocab-size {rows} (megatron-cod convert), or choose what its rows fit"
    )


def _check_meta_device(args: MegatronArgs) -> None:
    """Megatron-Core 0.19.2 gives such weights memory and no values, which only a checkpoint or its own FSDP then does."""
    if not args.init_model_with_meta_device or args.use_megatron_fsdp:
        return
    flag = "--init-model-with-meta-device"
    if args.use_torch_fsdp2:
        raise UserError(f"{flag} does not go with --use-torch-fsdp2, which is given no memory for such weights")
    if checkpoint_to_load(args) is None:
        raise UserError(
            f"{flag} leaves the weights without values until a checkpoint is loaded; give --load, or omit it"
        )


def check_built(args: MegatronArgs, config: Any) -> None:
    """UserError, naming the flags, for what Megatron would refuse only when it builds the model or starts the schedule.

    args: after Megatron's validation. config: the TransformerConfig of the model.
    """
    check_graphs(args)
    check_low_precision(args)
    _check_meta_device(args)
    _check_attention(config)
    _check_divisions(args)
    _check_interleaving(args)
