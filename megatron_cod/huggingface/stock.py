"""Which fields of Megatron's configuration a stock model has, and how: a table that holds every field of the record.

``tests/huggingface/test_stock.py`` fails for a field of ``function_fields`` that has no place here; until it has one, an
export refuses a checkpoint that records it.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from megatron_cod.checkpoint.function_fields import ARGUMENTS, FUNCTION, TENSORS, YARN
from megatron_cod.checkpoint.function_record import RECORD, flag_of, routing
from megatron_cod.errors import UserError
from megatron_cod.huggingface.families.architecture import Multipliers
from megatron_cod.schemes.activation import GELU_TANH

_CARRIED = """
num_layers hidden_size num_attention_heads num_query_groups ffn_hidden_size kv_channels add_bias_linear add_qkv_bias
qk_layernorm multi_latent_attention q_lora_rank kv_lora_rank qk_head_dim qk_pos_emb_head_dim v_head_dim num_moe_experts
moe_layer_freq moe_ffn_hidden_size moe_router_enable_expert_bias moe_shared_expert_intermediate_size
share_embeddings_and_output_weights layernorm_epsilon layernorm_zero_centered_gamma rotary_base rope_scaling
rope_scaling_factor seq_len_interpolation_factor rope_type rotary_scaling_factor mscale mscale_all_dim rotary_percent
moe_router_topk moe_router_num_groups moe_router_group_topk moe_router_pre_softmax moe_router_topk_scaling_factor
moe_router_score_function no_rope_freq activation_func mtp_num_layers
"""
CARRIED = frozenset(_CARRIED.split()) | YARN
"""Read into ``Architecture``, or into how tensors are written."""

FOLDED = frozenset(("use_mup", "softmax_scale", "mup_embedding_mult", "mup_output_mult"))
"""Multipliers: a stock model has them, or they go into weights (``WeightFactors``)."""

STOCK: Mapping[str, tuple[Any, ...]] = {
    "normalization": ("RMSNorm",),
    "gated_linear_unit": (True,),
    "position_embedding_type": ("rope", "yarn"),
    "apply_residual_connection_post_layernorm": (False,),
    "rotary_interleaved": (False,),
    "mrope_section": (None,),
    "window_size": (None,),
    "qk_l2_norm": (False,),
    "attention_output_gate": (False,),
    "glu_linear_offset": (0.0,),
    "activation_func_clamp_value": (None,),
    "softmax_type": ("vanilla",),
    "original_max_position_embeddings": (4096,),
    "beta_fast": (32,),
    "beta_slow": (1,),
    "experimental_attention_variant": (None,),
    "heterogeneous_block_specs": (False, None),
    "is_hybrid_model": (False,),
    "use_arbitrary_attention_mask": (None, False),
    "moe_latent_size": (None,),
    "moe_shared_expert_gate": (False,),
    "moe_router_topk_limited_devices": (None,),
    "moe_router_load_balancing_type": ("top-k",),
    "moe_router_force_load_balancing": (False,),
    "moe_router_force_biased": (None,),
    "moe_apply_probs_on_input": (False,),
    "moe_expert_capacity_factor": (None,),
    "moe_token_dropping": (False,),
    "moe_mlp_glu_interleave_size": (None,),
    "moe_shared_expert_glu_interleave_size": (None,),
}
"""A field -> the values with which a stock model computes the same; any other is refused by name."""

WITHOUT_EFFECT: Mapping[str, str] = {
    "acts only with a field that is refused": """
        window_attn_skip_freq linear_attention_freq linear_conv_kernel_dim linear_key_head_dim linear_value_head_dim
        linear_num_key_heads linear_num_value_heads mamba_state_dim mamba_head_dim mamba_num_groups mamba_num_heads
        dsa_indexer_n_heads dsa_indexer_head_dim dsa_indexer_topk dsa_indexer_topk_freq dsa_indexer_skip_topk_offset
        dsa_indexer_rope_interleaved dsa_indexer_rotate_activation dsa_indexer_scoring_relu dsa_indexer_k_norm_epsilon
        moe_pad_expert_input_to_capacity moe_token_drop_policy
        """,
    "what a folded field was derived from": "mup_width_mult mup_base_hidden_size mup_base_head_dim mup_attn_scale_power",
    "of prediction layers, which the model's logits do not read": "mtp_use_repeated_layer mtp_hybrid_override_pattern",
    "in which precision products were": "quant_recipe",
}
"""Why these may have any value -> the fields."""
_FREE = frozenset(" ".join(WITHOUT_EFFECT.values()).split())


@dataclass(frozen=True)
class WeightFactors:
    """A model's multipliers, as a stock model without them has them in its weights."""

    queries: float = 1.0
    embedding: float = 1.0
    final_norm: float = 1.0

    @property
    def is_stock(self) -> bool:
        return self == WeightFactors()

    def __str__(self) -> str:
        return ", ".join(f"{name.replace('_', ' ')} x {value:g}" for name, value in vars(self).items() if value != 1.0)


def fields_of(args: Namespace) -> SimpleNamespace:
    """The model's configuration by a checkpoint's arguments: as it was built, where they record that.

    UserError, by name, for what no stock model has.
    """
    record = getattr(args, RECORD, None)
    found = dict(record) if record is not None else _from_arguments(args)
    for name, value in sorted(found.items()):
        _check(name, value)
    if getattr(args, "hybrid_layer_pattern", None) is not None:
        raise UserError(f"--hybrid-layer-pattern {args.hybrid_layer_pattern} is in no stock model")
    return SimpleNamespace(**{name: found.get(name) for name in sorted(CARRIED | FOLDED)})


def _check(name: str, value: Any) -> None:
    if name in STOCK:
        if value not in STOCK[name]:
            raise UserError(f"the checkpoint was trained with {_named(name)} {value}, which no stock model computes")
    elif name not in CARRIED | FOLDED | _FREE:
        raise UserError(f"the checkpoint records {name} {value}, of which the export does not know what it computes")


def _named(name: str) -> str:
    flag = flag_of(name)
    return flag if flag == "--" + name.replace("_", "-") else f"{flag} ({name})"


def _from_arguments(args: Namespace) -> dict[str, Any]:
    """The same of a checkpoint without a record: an import, or one of an earlier version."""
    mup = _mup_of_import(args)
    if getattr(args, "use_mup", False) and not mup:
        raise UserError(
            "the checkpoint was trained with --use-mup by a version that did not record the built model: its multipliers "
            "are unknown; train it on for a step to have them recorded"
        )
    found = {}
    for name in TENSORS | FUNCTION:
        argument = ARGUMENTS.get(name, name)
        if name == argument and hasattr(args, name):
            found[name] = getattr(args, name)
    if args.position_embedding_type == "yarn":
        found |= {name: getattr(args, ARGUMENTS.get(name, name), None) for name in YARN}
    else:
        found |= dict.fromkeys(YARN)
    heads, swiglu, quick = args.num_attention_heads, bool(args.swiglu), bool(getattr(args, "quick_geglu", False))
    found |= {
        "num_moe_experts": args.num_experts,
        "share_embeddings_and_output_weights": not args.untie_embeddings_and_output_weights,
        "gated_linear_unit": swiglu or quick,
        "activation_func": _activation_of(args),
        "num_query_groups": args.num_query_groups if args.group_query_attention else heads,
        "kv_channels": args.kv_channels or args.hidden_size // heads,
        "rope_scaling": getattr(args, "use_rope_scaling", False),
        "seq_len_interpolation_factor": getattr(args, "rotary_seq_len_interpolation_factor", None),
        "heterogeneous_block_specs": getattr(args, "heterogeneous_layers_config_path", None) is not None,
        "moe_router_load_balancing_type": routing(getattr(args, "moe_router_load_balancing_type", None)),
        "rope_type": getattr(args, "rope_type", None) or "yarn",
    }
    return found | mup


def _activation_of(args: Namespace) -> str:
    if args.swiglu:
        return GELU_TANH if getattr(args, "geglu", False) else "silu"
    return "quick_gelu" if getattr(args, "quick_geglu", False) else "gelu"


def _mup_of_import(args: Namespace) -> dict[str, Any]:
    """What an import's multipliers come to: at a base width that is the model's nothing else is derived from them."""
    if not getattr(args, "use_mup", False) or args.mup_base_hidden_size != args.hidden_size:
        return {}
    base, power = args.mup_base_head_dim, args.mup_attn_scale_power
    return {"softmax_scale": (1.0 if base is None else base**0.5) / args.kv_channels**power}


def multipliers_of(fields: SimpleNamespace) -> Multipliers:
    """What the model multiplies beside its weights. Latent attention has a scale of its own."""
    embedding, logits = (fields.mup_embedding_mult, fields.mup_output_mult) if fields.use_mup else (1.0, 1.0)
    scale = None if fields.multi_latent_attention else fields.softmax_scale
    if not (embedding and logits and scale != 0):
        raise UserError("a multiplier of 0 (--mup-embedding-mult, --mup-output-mult) is in no stock model")
    return Multipliers(float(embedding), None if scale is None else float(scale), logits=float(logits))


def weight_factors(asked: Multipliers, own: Multipliers, head_dim: int, tied: bool) -> WeightFactors:
    """What of ``asked`` goes into the weights of a stock model that multiplies ``own`` itself."""
    scales = [head_dim**-0.5 if one.attention is None else one.attention for one in (asked, own)]
    embedding = asked.embedding / own.embedding
    # The head's rows are the embedding's where they are tied: what they carry too much, the norm before them takes off.
    final_norm = asked.logits / own.logits / (embedding if tied else 1.0)
    return WeightFactors(1.0 if scales[0] == scales[1] else scales[0] / scales[1], embedding, final_norm)
