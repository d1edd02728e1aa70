"""Llama, Mistral, Qwen2 (2.5), Qwen3 and SmolLM3: one block, with or without biases and norms of queries and keys."""

from typing import Any

from megatron_cod.errors import UserError
from megatron_cod.huggingface.families import shared_rows
from megatron_cod.huggingface.families.architecture import (
    BIASES,
    QK_NORM,
    QKV_BIAS,
    SCALED_ROPE,
    UNROTATED,
    Architecture,
)
from megatron_cod.huggingface.families.config_fields import NO_WINDOW, Config, need, only
from megatron_cod.huggingface.families.family import Family

ROWS = (
    shared_rows.EMBEDDING,
    shared_rows.ATTENTION_NORM,
    *shared_rows.ATTENTION,
    shared_rows.MLP_NORM,
    *shared_rows.DENSE_MLP,
    shared_rows.FINAL_NORM,
    shared_rows.HEAD,
)


def read_biases(config: Config) -> dict[str, Any]:
    """Biases on all projections, or on none."""
    attention, mlp = bool(config.get("attention_bias")), bool(config.get("mlp_bias"))
    if attention != mlp:
        raise UserError("config.json has attention_bias and mlp_bias differ; Megatron has both or neither")
    return {"linear_bias": attention}


def write_biases(arch: Architecture) -> dict[str, Any]:
    return {"attention_bias": arch.linear_bias, "mlp_bias": arch.linear_bias}


def _read_qwen3(config: Config) -> dict[str, Any]:
    only(config, attention_bias=False)
    return {"qk_norm": True}


def _read_smollm3(config: Config) -> dict[str, Any]:
    only(config, use_sliding_window=False)
    rotated, layers = config.get("no_rope_layers"), int(need(config, "num_hidden_layers"))
    if rotated is None:
        interval = int(config.get("no_rope_layer_interval") or 4)
        rotated = [int((layer + 1) % interval != 0) for layer in range(layers)]
    if len(rotated) != layers:
        raise UserError(f"config.json has no_rope_layers of {len(rotated)} layers, and num_hidden_layers {layers}")
    return {**read_biases(config), "unrotated": tuple(layer for layer, on in enumerate(rotated, 1) if not on)}


def _write_smollm3(arch: Architecture) -> dict[str, Any]:
    rotated = [int(layer not in arch.unrotated) for layer in range(1, arch.layers + 1)]
    return {**write_biases(arch), "no_rope_layers": rotated, **NO_WINDOW}


LLAMA = Family("llama", "LlamaForCausalLM", ROWS, read_biases, write_biases, may_have=SCALED_ROPE | {BIASES})
MISTRAL = Family(
    "mistral", "MistralForCausalLM", ROWS, lambda _: {}, lambda _: {"sliding_window": None}, may_have=SCALED_ROPE
)
QWEN2 = Family(
    "qwen2",
    "Qwen2ForCausalLM",
    ROWS,
    lambda _: {"qkv_bias": True},
    lambda _: dict(NO_WINDOW),
    needs=frozenset({QKV_BIAS}),
    may_have=SCALED_ROPE,
)
QWEN3 = Family(
    "qwen3",
    "Qwen3ForCausalLM",
    ROWS,
    _read_qwen3,
    lambda _: {"attention_bias": False, **NO_WINDOW},
    needs=frozenset({QK_NORM}),
    may_have=SCALED_ROPE,
)
SMOLLM3 = Family(
    "smollm3",
    "SmolLM3ForCausalLM",
    ROWS,
    _read_smollm3,
    _write_smollm3,
    may_have=SCALED_ROPE | {BIASES, UNROTATED},
)
