"""FAMILIES: one row per Hugging Face architecture, with its mapping table and how its config reads and writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from megatron_cod.errors import UserError, bad_input
from megatron_cod.huggingface.families import deepseek, dense, mixtral, phi3, qwen3_moe, shared_rows
from megatron_cod.huggingface.families.architecture import Architecture
from megatron_cod.huggingface.families.config_fields import (
    NO_WINDOW,
    Config,
    check_latent_rope,
    need,
    only,
    read_common,
    write_rope,
)
from megatron_cod.huggingface.families.mapping_rows import Row


@dataclass(frozen=True)
class Family:
    """A stock architecture of Hugging Face."""

    name: str
    """Its ``model_type``."""
    model_class: str
    """What ``architectures`` names."""
    rows: tuple[Row, ...]
    read: Callable[[Config], dict[str, Any]]
    """Fields of ``Architecture`` beyond ``read_common``; UserError for what Megatron's model does not compute."""
    write: Callable[[Architecture], dict[str, Any]]
    """Keys of the config beyond ``write_common``."""
    expresses: Callable[[Architecture], bool]
    """Whether the stock model computes this architecture."""


def _plain(arch: Architecture) -> bool:
    return arch.latent is None and arch.experts is None and not arch.unrotated


def _read_llama(config: Config) -> dict[str, Any]:
    attention, mlp = bool(config.get("attention_bias")), bool(config.get("mlp_bias"))
    if attention != mlp:
        raise UserError("config.json has attention_bias and mlp_bias differ; Megatron has both or neither")
    return {"linear_bias": attention}


def _read_mistral(_config: Config) -> dict[str, Any]:
    return {}


def _read_qwen2(_config: Config) -> dict[str, Any]:
    return {"qkv_bias": True}


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
    return {**_read_llama(config), "unrotated": tuple(layer for layer, on in enumerate(rotated, 1) if not on)}


def _write_smollm3(arch: Architecture) -> dict[str, Any]:
    return {
        "attention_bias": arch.linear_bias,
        "mlp_bias": arch.linear_bias,
        "no_rope_layers": [int(layer not in arch.unrotated) for layer in range(1, arch.layers + 1)],
        **NO_WINDOW,
    }


_ROWS = (
    Family(
        "llama",
        "LlamaForCausalLM",
        dense.ROWS,
        _read_llama,
        lambda arch: {"attention_bias": arch.linear_bias, "mlp_bias": arch.linear_bias},
        lambda arch: _plain(arch) and not arch.qk_norm and (arch.linear_bias or not arch.qkv_bias),
    ),
    Family(
        "mistral",
        "MistralForCausalLM",
        dense.ROWS,
        _read_mistral,
        lambda _: {"sliding_window": None},
        lambda arch: _plain(arch) and not arch.qk_norm and shared_rows.unbiased(arch),
    ),
    Family(
        "qwen2",
        "Qwen2ForCausalLM",
        dense.ROWS,
        _read_qwen2,
        lambda _: dict(NO_WINDOW),
        lambda arch: _plain(arch) and not arch.qk_norm and arch.qkv_bias and not arch.linear_bias,
    ),
    Family(
        "qwen3",
        "Qwen3ForCausalLM",
        dense.ROWS,
        _read_qwen3,
        lambda _: {"attention_bias": False, **NO_WINDOW},
        lambda arch: _plain(arch) and arch.qk_norm and shared_rows.unbiased(arch),
    ),
    Family(
        "smollm3",
        "SmolLM3ForCausalLM",
        dense.ROWS,
        _read_smollm3,
        _write_smollm3,
        lambda arch: (
            _plain(replace(arch, unrotated=())) and not arch.qk_norm and (arch.linear_bias or not arch.qkv_bias)
        ),
    ),
    Family(
        "phi3",
        "Phi3ForCausalLM",
        phi3.ROWS,
        lambda _: {},
        lambda _: {"sliding_window": None},
        lambda arch: _plain(arch) and not arch.qk_norm and shared_rows.unbiased(arch) and arch.rope.kind == "default",
    ),
    Family("qwen3_moe", "Qwen3MoeForCausalLM", qwen3_moe.ROWS, qwen3_moe.read, qwen3_moe.write, qwen3_moe.expresses),
    Family("mixtral", "MixtralForCausalLM", mixtral.ROWS, mixtral.read, mixtral.write, mixtral.expresses),
    Family(
        "deepseek_v2",
        "DeepseekV2ForCausalLM",
        deepseek.ROWS,
        deepseek.read_v2,
        deepseek.write_v2,
        lambda arch: deepseek.expresses(arch, "pre_softmax"),
    ),
    Family(
        "deepseek_v3",
        "DeepseekV3ForCausalLM",
        deepseek.ROWS,
        deepseek.read_v3,
        deepseek.write_v3,
        lambda arch: deepseek.expresses(arch, "sigmoid"),
    ),
)

FAMILIES: dict[str, Family] = {row.name: row for row in _ROWS}


def get_family(name: str) -> Family:
    """The row called ``name``; UserError names the known ones."""
    if name not in FAMILIES:
        raise UserError(f"unknown architecture {name!r}; known are {', '.join(FAMILIES)}")
    return FAMILIES[name]


def choose_family(arch: Architecture, wanted: str | None = None) -> Family:
    """The first family whose stock model computes this architecture, or ``wanted``; UserError when none does."""
    if wanted is not None:
        family = get_family(wanted)
        if not family.expresses(arch):
            fits = [row.name for row in _ROWS if row.expresses(arch)]
            raise UserError(f"{wanted} does not compute this model; {', '.join(fits) or 'no known family'} does")
        return family
    for row in _ROWS:
        if row.expresses(arch):
            return row
    raise UserError(f"no stock architecture computes this model ({describe(arch)}); known are {', '.join(FAMILIES)}")


def describe(arch: Architecture) -> str:
    """What sets an architecture apart, for messages."""
    found = [
        "latent attention" if arch.latent else "",
        f"experts ({arch.experts})" if arch.experts else "",
        "norms of queries and keys" if arch.qk_norm else "",
        "biases of q, k, v" if arch.qkv_bias else "",
        "biases" if arch.linear_bias else "",
        f"{arch.rope.kind} RoPE",
        f"{len(arch.unrotated)} layers without RoPE" if arch.unrotated else "",
        f"norm epsilon {arch.eps:g}",
    ]
    return ", ".join(filter(None, found))


def architecture_of(config: Config) -> tuple[Architecture, list[str]]:
    """The architecture of a Hugging Face config, and notes on what is not carried over without harm.

    Raises UserError for an unknown architecture, or a value that Megatron's model does not compute.
    """
    family = get_family(str(config.get("model_type") or "(none)"))
    with bad_input("config.json"):
        arch = Architecture(family=family.name, **{**read_common(config), **family.read(config)})
    if arch.latent is not None:
        check_latent_rope(arch.rope)
    notes = []
    window = _window(config)
    if window and int(window) < arch.positions:
        notes.append(
            f"the attention window of {window} tokens is not carried over: the function is the same up to that length, "
            f"so --max-position-embeddings is {window} instead of {arch.positions}"
        )
        arch = replace(arch, positions=int(window))
    return arch, notes


def _window(config: Config) -> int | None:
    """Tokens that some layer looks back at most; None without a limit."""
    types = config.get("layer_types")
    unknown = sorted(set(types or ()) - {"full_attention", "sliding_attention"})
    if unknown:
        raise UserError(f"config.json has layer_types of {', '.join(unknown)}, which Megatron's model does not compute")
    if not config.get("use_sliding_window", True) or (types is not None and "sliding_attention" not in types):
        return None
    return config.get("sliding_window")


def config_of(arch: Architecture) -> dict[str, Any]:
    """A ``config.json`` for an architecture, of its family."""
    family = get_family(arch.family)
    return {
        "architectures": [family.model_class],
        "model_type": family.name,
        "vocab_size": arch.vocab,
        "hidden_size": arch.hidden,
        "intermediate_size": arch.ffn,
        "num_hidden_layers": arch.layers,
        "num_attention_heads": arch.heads,
        "num_key_value_heads": arch.groups,
        "head_dim": arch.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": arch.positions,
        "rms_norm_eps": arch.eps,
        "tie_word_embeddings": arch.tied,
        "attention_dropout": 0.0,
        **write_rope(arch.rope),
        **family.write(arch),
    }
