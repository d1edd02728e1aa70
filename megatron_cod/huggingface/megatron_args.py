"""The architecture in a checkpoint's arguments, or in its record of the built model."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from typing import Any

from megatron_cod.errors import UserError
from megatron_cod.huggingface.families.architecture import Architecture, Experts, Latent, Rope
from megatron_cod.huggingface.families.table import FAMILIES, choose_family
from megatron_cod.huggingface.stock import WeightFactors, fields_of, multipliers_of, weight_factors
from megatron_cod.schemes.activation import GELU_TANH


def _rope(fields: Any) -> Rope:
    theta = float(fields.rotary_base)
    if fields.multi_latent_attention:
        factor, every = float(fields.rotary_scaling_factor), float(fields.mscale_all_dim)
        if fields.rope_type == "rope":
            if every and factor > 1:
                raise UserError("--mscale-all-dim with --rope-type rope has no counterpart in a stock model")
            return Rope(theta)
        if factor <= 1:
            return Rope(theta)  # yarn by 1 is no scaling
        return Rope(theta, "yarn", factor, float(fields.mscale), every)
    if fields.yarn_rotary_scaling_factor is not None:
        return _yarn(theta, fields)
    share = min(float(fields.rotary_percent or 1.0), 1.0)
    if fields.rope_scaling:
        return Rope(theta, "llama3", float(fields.rope_scaling_factor), share=share)
    linear = fields.seq_len_interpolation_factor
    return Rope(theta, share=share) if linear in (None, 1) else Rope(theta, "linear", float(linear), share=share)


def _yarn(theta: float, fields: Any) -> Rope:
    """Of attention that is not latent; what no flag gave is as Megatron's configuration has it.

    Megatron turns whole heads there, whatever ``--rotary-percent`` is.
    """

    def value(name: str, default: float) -> Any:
        found = getattr(fields, f"yarn_{name}")
        return default if found is None else found

    if value("rotary_scaling_factor", 1.0) <= 1:
        return Rope(theta)  # no scaling
    return Rope(
        theta,
        "yarn",
        float(value("rotary_scaling_factor", 1.0)),
        float(value("mscale", 1.0)),
        float(value("mscale_all_dim", 0.0)),
        int(value("original_max_position_embeddings", 4096)),
        float(value("beta_fast", 32.0)),
        float(value("beta_slow", 1.0)),
        bool(value("correction_range_round_to_int", True)),
    )


def _unrotated(fields: Any) -> tuple[int, ...]:
    """Layers without rotary positions; a number N is every Nth."""
    pattern, layers = fields.no_rope_freq, range(1, fields.num_layers + 1)
    if isinstance(pattern, int):
        return tuple(layer for layer in layers if layer % pattern == 0)
    return tuple(layer for layer, skips in zip(layers, pattern or (), strict=False) if skips)


def _dense_layers(fields: Any) -> int:
    pattern = fields.moe_layer_freq
    if pattern == 1:
        return 0
    if isinstance(pattern, list) and pattern == sorted(pattern) and set(pattern) <= {0, 1}:
        return pattern.count(0)
    raise UserError(f"--moe-layer-freq {pattern}: a stock model has dense layers first, then experts")


def _activation(fields: Any) -> str:
    known = {"silu": "silu", GELU_TANH: "gelu_tanh"}
    if fields.activation_func not in known:
        raise UserError(
            f"the checkpoint was trained with --swiglu (activation_func) {fields.activation_func}, which no stock model "
            "computes"
        )
    return known[fields.activation_func]


def _experts(fields: Any) -> Experts | None:
    if not fields.num_moe_experts:
        return None
    sigmoid = fields.moe_router_score_function == "sigmoid"
    if fields.moe_router_score_function not in ("softmax", "sigmoid"):
        raise UserError(f"--moe-router-score-function {fields.moe_router_score_function} is in no stock model")
    if sigmoid != bool(fields.moe_router_enable_expert_bias):
        raise UserError(
            "--moe-router-score-function sigmoid and --moe-router-enable-expert-bias are only known together"
        )
    score = "sigmoid" if sigmoid else "pre_softmax" if fields.moe_router_pre_softmax else "softmax"
    return Experts(
        count=fields.num_moe_experts,
        chosen=fields.moe_router_topk,
        ffn=fields.moe_ffn_hidden_size or fields.ffn_hidden_size,
        shared_ffn=fields.moe_shared_expert_intermediate_size or 0,
        dense_layers=_dense_layers(fields),
        score=score,
        scale=fields.moe_router_topk_scaling_factor or 1.0,
        groups=fields.moe_router_num_groups or 1,
        chosen_groups=fields.moe_router_group_topk or 1,
    )


def _latent(fields: Any) -> Latent | None:
    if not fields.multi_latent_attention:
        return None
    if not fields.qk_layernorm:
        raise UserError("--multi-latent-attention without --qk-layernorm is in no stock model")
    sizes = (fields.kv_lora_rank, fields.qk_head_dim, fields.qk_pos_emb_head_dim, fields.v_head_dim)
    return Latent(*sizes, fields.q_lora_rank)


def _rows(args: Namespace, vocab: int | None) -> int:
    padded = args.padded_vocab_size
    if vocab is None:
        vocab = min(getattr(args, "vocab_size", None) or padded, padded)
    if not 0 < vocab <= padded:
        raise UserError(f"--vocab-size {vocab}: the checkpoint has {padded} rows")
    return vocab


def architecture_of_args(
    args: Namespace,
    vocab: int | None = None,
    family: str | None = None,
    rather: str | None = None,
    branch_norms: bool = False,
) -> tuple[Architecture, WeightFactors]:
    """The architecture that a checkpoint's arguments built, and what its weights lack in a model without multipliers.

    vocab: rows to keep of the padded vocabulary; None: those of the arguments, or all. family:
    which stock model to write, None for the first that computes it, ``rather`` before others. branch_norms:
    whether the norm scheme has norms behind the branches. Raises UserError where none does.
    """
    fields = fields_of(args)
    latent, heads = _latent(fields), fields.num_attention_heads
    arch = Architecture(
        family="",
        layers=fields.num_layers,
        hidden=fields.hidden_size,
        ffn=fields.ffn_hidden_size,
        heads=heads,
        groups=fields.num_query_groups if latent is None else heads,
        head_dim=latent.nope + latent.rope if latent else fields.kv_channels,
        vocab=_rows(args, vocab),
        padded_vocab=args.padded_vocab_size,
        eps=fields.layernorm_epsilon,
        positions=args.max_position_embeddings,
        tied=bool(fields.share_embeddings_and_output_weights),
        qkv_bias=bool(fields.add_qkv_bias),
        linear_bias=bool(fields.add_bias_linear),
        qk_norm=bool(fields.qk_layernorm) and latent is None,
        unrotated=_unrotated(fields),
        branch_norms=branch_norms,
        activation=_activation(fields),
        rope=_rope(fields),
        latent=latent,
        experts=_experts(fields),
    )
    if family is None and rather in FAMILIES and FAMILIES[rather].expresses(arch):
        family = rather
    chosen = choose_family(arch, family)
    arch, multipliers = replace(arch, family=chosen.name), multipliers_of(fields)
    own = chosen.multiplies(replace(arch, multipliers=multipliers))
    factors = weight_factors(multipliers, own, arch.head_dim, arch.tied)
    # Of a model with multipliers they are omitted: the loss behind them has its own.
    predicted = (fields.mtp_num_layers or 0) if chosen.predicts(arch) and factors.is_stock else 0
    return replace(arch, multipliers=own, predicted=predicted), factors
