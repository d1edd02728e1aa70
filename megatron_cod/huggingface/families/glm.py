"""GLM-4: RoPE that turns neighbouring channels of a part of each head; of April 2025 norms behind the branches, too."""

from dataclasses import replace
from typing import Any

from megatron_cod.huggingface.families import shared_rows
from megatron_cod.huggingface.families.architecture import (
    BRANCH_NORMS,
    PARTIAL_ROPE,
    QKV_BIAS,
    SCALED_ROPE,
    Architecture,
)
from megatron_cod.huggingface.families.config_fields import Config
from megatron_cod.huggingface.families.family import Family
from megatron_cod.huggingface.families.mapping_rows import PAIRED_QKV, QKV

_ATTENTION = tuple(replace(row, join=PAIRED_QKV) if row.join is QKV else row for row in shared_rows.ATTENTION)
_FIRST = (shared_rows.EMBEDDING, shared_rows.ATTENTION_NORM, *_ATTENTION)
_LAST = (shared_rows.FINAL_NORM, shared_rows.HEAD)
_PARTS = SCALED_ROPE | {QKV_BIAS, PARTIAL_ROPE}


def _read(config: Config) -> dict[str, Any]:
    return {"qkv_bias": bool(config.get("attention_bias"))}


def _write(arch: Architecture) -> dict[str, Any]:
    return {"attention_bias": arch.qkv_bias, "partial_rotary_factor": arch.rope.share}


GLM = Family(
    "glm",
    "GlmForCausalLM",
    (*_FIRST, shared_rows.MLP_NORM, *shared_rows.FUSED_MLP, *_LAST),
    _read,
    _write,
    may_have=_PARTS,
)
GLM4 = Family(
    "glm4",
    "Glm4ForCausalLM",
    (
        *_FIRST,
        shared_rows.branch_norm("attention", "post_self_attn_layernorm"),
        shared_rows.MLP_NORM,
        *shared_rows.FUSED_MLP,
        shared_rows.branch_norm("mlp", "post_mlp_layernorm"),
        *_LAST,
    ),
    lambda config: {"branch_norms": True, **_read(config)},
    _write,
    needs=frozenset({BRANCH_NORMS}),
    may_have=_PARTS,
)
