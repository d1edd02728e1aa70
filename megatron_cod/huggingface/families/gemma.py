"""Gemma: norms stored less 1, GeGLU, an embedding times sqrt(hidden size); from Gemma 2 on norms behind branches, too."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from megatron_cod.errors import UserError
from megatron_cod.huggingface.families import shared_rows
from megatron_cod.huggingface.families.architecture import (
    BRANCH_NORMS,
    GEGLU,
    QK_NORM,
    SCALED_ROPE,
    Architecture,
    Multipliers,
)
from megatron_cod.huggingface.families.config_fields import ACTIVATIONS, Config, name_of, only
from megatron_cod.huggingface.families.dense import ROWS
from megatron_cod.huggingface.families.family import Family

_MLP_NORM = replace(shared_rows.MLP_NORM, hf=(("model.layers.{l}.pre_feedforward_layernorm.weight", "hidden"),))
_SANDWICH = (
    shared_rows.EMBEDDING,
    shared_rows.ATTENTION_NORM,
    *shared_rows.ATTENTION,
    shared_rows.branch_norm("attention", "post_attention_layernorm"),
    _MLP_NORM,
    *shared_rows.DENSE_MLP,
    shared_rows.branch_norm("mlp", "post_feedforward_layernorm"),
    shared_rows.FINAL_NORM,
    shared_rows.HEAD,
)
_CAPS = {"attn_logit_softcapping": "the attention's scores", "final_logit_softcapping": "the logits"}


def _read(config: Config) -> dict[str, Any]:
    only(config, attention_bias=False, use_bidirectional_attention=False)
    for name, what in _CAPS.items():
        if config.get(name) is not None:
            raise UserError(f"config.json has {name} {config[name]:g}: Megatron-Core 0.19.2 has no soft cap of {what}")
    attention = config.get("query_pre_attn_scalar")
    return {
        "multipliers": Multipliers(
            embedding=float(config["hidden_size"]) ** 0.5,
            attention=None if attention in (None, config.get("head_dim")) else float(attention) ** -0.5,
        )
    }


def _common_gate(config: Config) -> Config:
    """Gemma 2 and 3 have ``hidden_activation`` for ``hidden_act``."""
    found = config.get("hidden_activation")
    if found not in (None, *ACTIVATIONS):
        raise UserError(
            f"config.json has hidden_activation {found!r}; only {', '.join(ACTIVATIONS)} can be carried over"
        )
    return config if found is None else {**config, "hidden_act": found}


def _plain_rope(config: Config) -> Config:
    """RoPE of Gemma 3, which has one for layers with a window and one for the others; UserError unless they agree."""
    config = _common_gate(config)
    given = config.get("rope_parameters") or {}
    full, local = (given.get(f"{kind}_attention") for kind in ("full", "sliding"))
    if not isinstance(full, Mapping):
        return config
    if "sliding_attention" in (config.get("layer_types") or ()) and local != full:
        raise UserError(
            f"config.json has RoPE {dict(local or {})} in layers with a window and {dict(full)} in the others: "
            f"Megatron-Core 0.19.2 has one for all layers (--rotary-base)"
        )
    return {**config, "rope_parameters": dict(full)}


def _scalar(arch: Architecture) -> int | None:
    """``query_pre_attn_scalar``, a whole number; None where there is none for the scale of the attention."""
    attention = arch.multipliers.attention
    found = arch.head_dim if attention is None else attention**-2
    return round(found) if abs(found - round(found)) < 1e-6 * found else None


def _own(arch: Architecture) -> Multipliers:
    return Multipliers(embedding=float(arch.hidden) ** 0.5)


def _own_scaled(arch: Architecture) -> Multipliers:
    return replace(_own(arch), attention=None if _scalar(arch) is None else arch.multipliers.attention)


def _write(arch: Architecture) -> dict[str, Any]:
    return {"attention_bias": False, "hidden_activation": name_of(arch.activation)}


def _write_sandwich(arch: Architecture) -> dict[str, Any]:
    """Full attention everywhere, said in each of the ways that loaders read: no layer's window is shorter than a sample."""
    return {
        **_write(arch),
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "query_pre_attn_scalar": _scalar(arch) or arch.head_dim,
        "layer_types": ["full_attention"] * arch.layers,
        "sliding_window": arch.positions,
    }


def _divides(arch: Architecture) -> bool:
    return arch.hidden % arch.heads == 0


_SANDWICH_KEYS = frozenset({"use_bidirectional_attention", "hidden_activation", "query_pre_attn_scalar", *_CAPS})

GEMMA = Family(
    "gemma",
    "GemmaForCausalLM",
    ROWS,
    _read,
    _write,
    may_have=SCALED_ROPE | {GEGLU},
    multiplies=_own,
    less_one=True,
    reads=frozenset({"use_bidirectional_attention"}),
    free=frozenset({"hidden_activation"}),  # of older versions, beside hidden_act
)
GEMMA2 = Family(
    "gemma2",
    "Gemma2ForCausalLM",
    _SANDWICH,
    lambda config: {"branch_norms": True, **_read(config)},
    _write_sandwich,
    needs=frozenset({BRANCH_NORMS}),
    may_have=SCALED_ROPE | {GEGLU},
    fits=_divides,
    multiplies=_own_scaled,
    less_one=True,
    reads=_SANDWICH_KEYS,
    prepare=_common_gate,
)
GEMMA3 = Family(
    "gemma3_text",
    "Gemma3ForCausalLM",
    _SANDWICH,
    lambda config: {"branch_norms": True, "qk_norm": True, **_read(config)},
    lambda arch: {**_write_sandwich(arch), "rope_local_base_freq": arch.rope.theta},
    needs=frozenset({BRANCH_NORMS, QK_NORM}),
    may_have=SCALED_ROPE | {GEGLU},
    fits=_divides,
    multiplies=_own_scaled,
    less_one=True,
    reads=_SANDWICH_KEYS | {"rope_local_base_freq"},
    free=frozenset({"_sliding_window_pattern", "sliding_window_pattern"}),  # layer_types follows from it
    prepare=_plain_rope,
)
