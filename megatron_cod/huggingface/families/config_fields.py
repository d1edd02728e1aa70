"""Reading a Hugging Face ``config.json``: every value that is not carried over is refused by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from megatron_cod.errors import UserError
from megatron_cod.huggingface.families.architecture import Rope

Config = Mapping[str, Any]

_READ = """
model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim
hidden_act max_position_embeddings rms_norm_eps tie_word_embeddings rope_parameters rope_theta rope_scaling
partial_rotary_factor quantization_config attention_bias mlp_bias sliding_window use_sliding_window layer_types
num_experts_per_tok num_local_experts moe_intermediate_size n_routed_experts n_shared_experts first_k_dense_replace
routed_scaling_factor norm_topk_prob scoring_func topk_method n_group topk_group moe_layer_freq rope_interleave
kv_lora_rank q_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim num_experts decoder_sparse_step mlp_only_layers
no_rope_layers no_rope_layer_interval
"""
READ = frozenset(_READ.split())
"""Keys of a config that families read, or refuse but for one value; what a single one has is in its ``Family.reads``."""

_FREE = """
transformers_version architectures output_hidden_states return_dict dtype torch_dtype chunk_size_feed_forward
is_encoder_decoder id2label label2id problem_type initializer_range use_cache pad_token_id bos_token_id eos_token_id
sep_token_id decoder_start_token_id pretraining_tp attention_dropout _name_or_path output_attentions max_window_layers
output_router_logits router_aux_loss_coef router_jitter_noise num_nextn_predict_layers qk_head_dim auto_map
_attn_implementation attn_implementation ep_size seq_aux aux_loss_alpha experts_implementation
_experts_implementation resid_pdrop embd_pdrop original_max_position_embeddings
"""
FREE = frozenset(_FREE.split())
"""Keys on which the function of a trained model does not hang, or that follow from those in ``READ``."""

# llama3's scaling has these as constants in Megatron (RotaryEmbedding._apply_scaling).
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
# And yarn these (MLATransformerConfig); there are no flags for them.
YARN = {"beta_fast": 32.0, "beta_slow": 1.0, "original_max_position_embeddings": 4096}

_ROPE_KEYS = {*LLAMA3, *YARN, "rope_type", "type", "rope_theta", "factor", "mscale", "mscale_all_dim"}
_ROPE_KEYS |= {"partial_rotary_factor", "attention_factor", "truncate", "short_factor", "long_factor"}


ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
"""Of the gate, by Hugging Face's names."""

NO_WINDOW: Config = {"use_sliding_window": False, "sliding_window": None}
"""What is written for a family whose layers may have windows."""


def need(config: Config, name: str) -> Any:
    """A value that must be there."""
    value = config.get(name)
    if value is None:
        raise UserError(f"config.json does not set {name}")
    return value


def only(config: Config, **allowed: Any) -> None:
    """UserError unless each value is absent, null or the one that Megatron's model computes."""
    for name, value in allowed.items():
        found = config.get(name)
        if found is not None and found != value:
            raise UserError(f"config.json has {name} {found!r}; only {value!r} can be carried over")


def _constants(rope: Config, expected: dict[str, float]) -> None:
    for name, value in expected.items():
        found = rope.get(name, value)
        if float(found) != float(value):
            raise UserError(f"RoPE scaling with {name} {found}: Megatron has {value} there, and no flag for it")


def read_rope(config: Config) -> Rope:
    """RoPE in the old spelling (``rope_theta``, ``rope_scaling``) or the new one (``rope_parameters``)."""
    given = dict(config.get("rope_scaling") or {}) | dict(config.get("rope_parameters") or {})
    if any(isinstance(value, Mapping) for value in given.values()):
        raise UserError("config.json gives RoPE layer by layer, which cannot be carried over")
    strangers = sorted(given.keys() - _ROPE_KEYS)
    if strangers:
        raise UserError(f"config.json has RoPE with {', '.join(strangers)}, which is not known to be carried over")
    share = float(given.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0)
    theta = float(given.get("rope_theta") or config.get("rope_theta") or 10000.0)
    if theta != int(theta):
        raise UserError(f"config.json has rope_theta {theta}: Megatron's --rotary-base is a whole number")
    kind = given.get("rope_type") or given.get("type") or "default"
    factor = float(given.get("factor") or 1.0)
    if kind == "default":
        return Rope(theta, share=share)
    if kind == "linear":
        if factor != int(factor):
            raise UserError(f"linear RoPE scaling by {factor}: Megatron's factor is a whole number")
        return Rope(theta, kind, factor, share=share)
    if kind == "llama3":
        _constants(given, LLAMA3)
        return Rope(theta, kind, factor, share=share)
    if kind == "yarn":
        return replace(_read_yarn(theta, given, config), share=share)
    raise UserError(f"RoPE scaling {kind!r} is unknown; there are default, linear, llama3 and yarn")


def _read_yarn(theta: float, given: Config, config: Config) -> Rope:
    original = int(given.get("original_max_position_embeddings") or need(config, "max_position_embeddings"))
    factor = float(given.get("factor") or need(config, "max_position_embeddings") / original)
    return Rope(
        theta,
        "yarn",
        factor,
        *_mscales(given, factor),
        original=original,
        beta_fast=float(given.get("beta_fast") or 32.0),
        beta_slow=float(given.get("beta_slow") or 1.0),
        truncate=given.get("truncate") is not False,
    )


def _mscales(given: Config, factor: float) -> tuple[float, float]:
    """Megatron's mscale and mscale_all_dim; transformers reads ``attention_factor`` first, then both or none."""
    asked = given.get("attention_factor")
    if asked is not None:
        if asked < 1 or factor <= 1:
            raise UserError(f"yarn RoPE scaling by {factor} with attention_factor {asked} cannot be carried over")
        return round((float(asked) - 1) / (math.log(factor) / 10), 9), 0.0
    mscale, every = float(given.get("mscale") or 0.0), float(given.get("mscale_all_dim") or 0.0)
    return (mscale, every) if mscale and every else (1.0, 0.0)


def check_latent_rope(rope: Rope) -> None:
    """UserError for what Megatron's latent attention has no flag for."""
    if rope.kind in ("linear", "llama3"):
        raise UserError(f"{rope.kind} RoPE scaling is not known with DeepSeek's attention")
    if rope.kind != "yarn":
        return
    found = {
        "original_max_position_embeddings": rope.original,
        "beta_fast": rope.beta_fast,
        "beta_slow": rope.beta_slow,
    }
    _constants(found, YARN)
    if not rope.truncate:
        raise UserError("yarn RoPE scaling with truncate false is not known with DeepSeek's attention")
    if not rope.mscale_all_dim:
        raise UserError("yarn RoPE scaling is only known with mscale and mscale_all_dim, as DeepSeek has it")


def write_rope(rope: Rope) -> dict[str, Any]:
    """The old spelling, which transformers (4 and 5), vLLM and llama.cpp all read."""
    scaling: dict[str, Any] | None = None
    if rope.kind != "default":
        scaling = {"rope_type": rope.kind, "type": rope.kind, "factor": rope.factor}
    if scaling is not None and rope.kind == "llama3":
        scaling |= LLAMA3
    if scaling is not None and rope.kind == "yarn":
        scaling |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow}
        scaling |= {"original_max_position_embeddings": rope.original}
        scaling |= {} if rope.truncate else {"truncate": False}
        if rope.mscale and rope.mscale_all_dim:
            scaling |= {"mscale": rope.mscale, "mscale_all_dim": rope.mscale_all_dim}
        elif (rope.mscale, rope.mscale_all_dim) != (1.0, 0.0):
            scaling |= {"attention_factor": rope.attention_factor}
    return {"rope_theta": rope.theta, "rope_scaling": scaling}


def name_of(activation: str) -> str:
    """Hugging Face's name of a gate's activation."""
    return next(name for name, kind in ACTIVATIONS.items() if kind == activation)


def fp8_blocks(config: Config) -> tuple[int, int] | None:
    """Rows and columns of the blocks of weights in fp8; None for weights that are not quantised.

    UserError, by name, for every other quantisation.
    """
    given = config.get("quantization_config")
    if not given:
        return None
    method = given.get("quant_method") if isinstance(given, Mapping) else None
    if method != "fp8":
        raise UserError(
            f"the weights are quantised (quantization_config) with quant_method {method!r}: only 'fp8' in blocks is read; "
            f"convert them to bfloat16 first"
        )
    for name, known in (("fmt", "e4m3"), ("activation_scheme", "dynamic"), ("expert_dtype", "fp8")):
        if given.get(name) not in (None, known):
            raise UserError(f"quantization_config has {name} {given[name]!r}; only {known!r} can be carried over")
    size = given.get("weight_block_size")
    if not isinstance(size, list | tuple) or len(size) != 2 or not all(type(one) is int and one > 0 for one in size):
        raise UserError(
            f"quantization_config has weight_block_size {size!r}: weights in fp8 need two whole numbers, as [128, 128]"
        )
    return size[0], size[1]


def _activation(config: Config) -> str:
    found = config.get("hidden_act", "silu")
    if found not in ACTIVATIONS:
        raise UserError(f"config.json has hidden_act {found!r}; only {', '.join(ACTIVATIONS)} can be carried over")
    return ACTIVATIONS[found]


def read_common(config: Config) -> dict[str, Any]:
    """The fields of ``Architecture`` that every family spells alike."""
    fp8_blocks(config)  # refuses what is quantised in another way
    hidden, heads = int(need(config, "hidden_size")), int(need(config, "num_attention_heads"))
    groups = int(config.get("num_key_value_heads") or heads)
    head_dim = int(config.get("head_dim") or hidden // heads)
    if heads % groups:
        raise UserError(f"config.json has {heads} heads, which do not divide over {groups} key-value heads")
    vocab = int(need(config, "vocab_size"))
    return {
        "layers": int(need(config, "num_hidden_layers")),
        "hidden": hidden,
        "ffn": int(need(config, "intermediate_size")),
        "heads": heads,
        "groups": groups,
        "head_dim": head_dim,
        "vocab": vocab,
        "padded_vocab": vocab,
        "eps": float(need(config, "rms_norm_eps")),
        "positions": int(need(config, "max_position_embeddings")),
        "activation": _activation(config),
        "tied": bool(config.get("tie_word_embeddings", False)),
        "rope": read_rope(config),
    }
