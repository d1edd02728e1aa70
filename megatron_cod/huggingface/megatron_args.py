"""What a checkpoint's arguments say of its architecture."""

from __future__ import annotations

from typing import Any

from megatron_cod.errors import UserError
from megatron_cod.huggingface.architecture import Architecture, Experts, Latent, Rope
from megatron_cod.huggingface.families.table import FAMILIES, choose_family

# Arguments that change the function in a way no stock model has: name -> the values that do not. Absent counts as fine.
_STOCK: dict[str, tuple[Any, ...]] = {
    "normalization": ("RMSNorm",),
    "swiglu": (True,),
    "position_embedding_type": ("rope",),
    "rotary_percent": (1.0,),
    "rotary_interleaved": (False,),
    "window_size": (None,),
    "qk_l2_norm": (False,),
    "attention_output_gate": (False,),
    "glu_linear_offset": (0.0,),
    "activation_func_clamp_value": (None,),
    "quick_geglu": (False,),
    "no_rope_freq": (None,),
    "softmax_type": ("vanilla",),
    "experimental_attention_variant": (None,),
    "heterogeneous_layers_config_path": (None,),
    "hybrid_layer_pattern": (None,),
    "moe_shared_expert_gate": (False,),
    "moe_latent_size": (None,),
    "moe_apply_probs_on_input": (False,),
    "moe_expert_capacity_factor": (None,),
    "mup_embedding_mult": (1.0,),
    "mup_output_mult": (1.0,),
}


def _flag(name: str) -> str:
    return {"layernorm_epsilon": "--norm-epsilon"}.get(name, "--" + name.replace("_", "-"))


def _rope(args: Any) -> Rope:
    theta = float(args.rotary_base)
    if getattr(args, "multi_latent_attention", False):
        factor, every = float(args.rotary_scaling_factor), float(args.mscale_all_dim)
        if (args.rope_type or "yarn") == "rope":
            if every and factor > 1:
                raise UserError("--mscale-all-dim with --rope-type rope has no counterpart in a stock model")
            return Rope(theta)
        if factor <= 1:
            return Rope(theta)  # yarn by 1 is no scaling
        return Rope(theta, "yarn", factor, float(args.mscale), every)
    if getattr(args, "use_rope_scaling", False):
        return Rope(theta, "llama3", float(args.rope_scaling_factor))
    linear = getattr(args, "rotary_seq_len_interpolation_factor", None)
    return Rope(theta) if linear in (None, 1) else Rope(theta, "linear", float(linear))


def _dense_layers(args: Any) -> int:
    pattern = args.moe_layer_freq
    if pattern == 1:
        return 0
    if isinstance(pattern, list) and pattern == sorted(pattern) and set(pattern) <= {0, 1}:
        return pattern.count(0)
    raise UserError(f"--moe-layer-freq {pattern}: a stock model has dense layers first, then experts")


def _experts(args: Any) -> Experts | None:
    if not args.num_experts:
        return None
    sigmoid = args.moe_router_score_function == "sigmoid"
    if args.moe_router_score_function not in ("softmax", "sigmoid"):
        raise UserError(f"--moe-router-score-function {args.moe_router_score_function} is in no stock model")
    if sigmoid and not args.moe_router_enable_expert_bias:
        raise UserError("--moe-router-score-function sigmoid is only known with --moe-router-enable-expert-bias")
    score = "sigmoid" if sigmoid else "pre_softmax" if args.moe_router_pre_softmax else "softmax"
    return Experts(
        count=args.num_experts,
        chosen=args.moe_router_topk,
        ffn=args.moe_ffn_hidden_size or args.ffn_hidden_size,
        shared_ffn=args.moe_shared_expert_intermediate_size or 0,
        dense_layers=_dense_layers(args),
        score=score,
        scale=args.moe_router_topk_scaling_factor or 1.0,
        groups=args.moe_router_num_groups or 1,
        chosen_groups=args.moe_router_group_topk or 1,
    )


def architecture_of_args(
    args: Any, vocab: int | None = None, family: str | None = None, rather: str | None = None
) -> Architecture:
    """The architecture that a checkpoint's arguments built.

    vocab: rows to keep of the padded vocabulary; None is what the arguments say, all where they say nothing. family:
    which stock model to write, None for the first that computes it, ``rather`` before others. Raises
    UserError where none does.
    """
    for name, values in _STOCK.items():
        found = getattr(args, name, values[0])
        if found not in values:
            raise UserError(f"the checkpoint was trained with {_flag(name)} {found}, which no stock model computes")
    padded = args.padded_vocab_size
    if vocab is None:
        vocab = min(getattr(args, "vocab_size", None) or padded, padded)
    if not 0 < vocab <= padded:
        raise UserError(f"--vocab-size {vocab}: the checkpoint has {padded} rows")
    latent = None
    if getattr(args, "multi_latent_attention", False):
        latent = Latent(
            args.kv_lora_rank, args.qk_head_dim, args.qk_pos_emb_head_dim, args.v_head_dim, args.q_lora_rank
        )
        if not args.qk_layernorm:
            raise UserError("--multi-latent-attention without --qk-layernorm is in no stock model")
    heads = args.num_attention_heads
    arch = Architecture(
        family="",
        layers=args.num_layers,
        hidden=args.hidden_size,
        ffn=args.ffn_hidden_size,
        heads=heads,
        groups=args.num_query_groups if args.group_query_attention and latent is None else heads,
        head_dim=latent.nope + latent.rope if latent else args.kv_channels or args.hidden_size // heads,
        vocab=vocab,
        padded_vocab=padded,
        eps=args.layernorm_epsilon,
        positions=args.max_position_embeddings,
        tied=not args.untie_embeddings_and_output_weights,
        qkv_bias=bool(args.add_qkv_bias),
        linear_bias=bool(args.add_bias_linear),
        qk_norm=bool(args.qk_layernorm) and latent is None,
        rope=_rope(args),
        latent=latent,
        experts=_experts(args),
    )
    if family is None and rather in FAMILIES and FAMILIES[rather].expresses(arch):
        family = rather
    chosen = choose_family(arch, family)
    return Architecture(**{**vars(arch), "family": chosen.name})
