"""FP8 and FP4: what this GPU has, which Transformer Engine checks only in the first forward."""

import os

from megatron_cod.args import MegatronArgs
from megatron_cod.backends.choice import have_transformer_engine
from megatron_cod.errors import UserError

UNPICKLES = "NVTE_ALLOW_UNSAFE_PICKLE_EXTRA_STATE"
"""Without it Transformer Engine 2.20 saves the state of delayed scaling, and ends the run that resumes from it."""

MULTIPLE = 16
"""Of what Transformer Engine's products take as widths."""

SUPPORT = {
    "delayed": "is_fp8_available",
    "tensorwise": "is_fp8_available",
    "blockwise": "is_fp8_block_scaling_available",
    "mxfp8": "is_mxfp8_available",
    "nvfp4": "is_nvfp4_available",
}
"""Megatron's recipe -> Transformer Engine's function that checks the device for it; ``custom`` is the user's own."""


def check_low_precision(args: MegatronArgs) -> None:
    """UserError, naming the flags, for a recipe that the device or the layers cannot run. args: after validation."""
    for bits in ("fp8", "fp4"):
        if getattr(args, bits, None):
            _check(args, f"--{bits}-format", f"--{bits}-recipe", getattr(args, f"{bits}_recipe"))
            _check_widths(args, f"--{bits}-format")
    if args.use_grouped_gemm_for_dense_mlp and have_transformer_engine():
        _check_device("--use-grouped-gemm-for-dense-mlp", "is_mxfp8_available")


def _check(args: MegatronArgs, asked: str, flag: str, recipe: str) -> None:
    if args.transformer_impl == "local" or not have_transformer_engine():
        raise UserError(
            f"{asked} needs Transformer Engine's layers; those of --backend torch and apex have no such products"
        )
    if recipe in SUPPORT:
        _check_device(f"{flag} {recipe}", SUPPORT[recipe])
    if recipe == "delayed" and (args.save or args.load) and os.environ.get(UNPICKLES) != "1":
        raise UserError(
            f"{flag} delayed saves its scaling factors as a pickle, which Transformer Engine refuses to load; "
            f"set {UNPICKLES}=1 if you trust your checkpoints, or take {flag} tensorwise"
        )


def _check_device(asked: str, function: str) -> None:
    import transformer_engine.pytorch as te

    available, reason = getattr(te, function)(return_reason=True)
    if not available:
        raise UserError(f"{asked}: {reason}")


def _check_widths(args: MegatronArgs, asked: str) -> None:
    """UserError for a width that the products do not take. Output layer and router are not of them."""
    tp = args.tensor_model_parallel_size
    channels = args.v_head_dim if args.multi_latent_attention else args.kv_channels
    widths = [
        ("--hidden-size", args.hidden_size, 1),
        ("--ffn-hidden-size", args.ffn_hidden_size, tp),
        ("--num-attention-heads times the channels of a head,", args.num_attention_heads * channels, tp),
    ]
    if args.num_experts:
        experts = args.moe_ffn_hidden_size or args.ffn_hidden_size
        widths.append(("--moe-ffn-hidden-size", experts, args.expert_tensor_parallel_size or tp))
    if args.multi_latent_attention:
        widths += [("--kv-lora-rank", args.kv_lora_rank, 1), ("--q-lora-rank", args.q_lora_rank or MULTIPLE, 1)]
    for name, width, ranks in widths:
        if width // ranks % MULTIPLE:
            over = f" over {ranks} ranks" if ranks > 1 else ""
            raise UserError(f"{asked} takes widths that are multiples of {MULTIPLE}: {name} {width}{over} is none")
    rows = args.seq_length * args.micro_batch_size // args.context_parallel_size
    rows //= tp if args.sequence_parallel else 1
    if rows % 8:
        raise UserError(f"{asked} takes multiples of 8 tokens: a rank has {rows} of a micro-batch; change --seq-length")
