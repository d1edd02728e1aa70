"""FAMILIES: one row per Hugging Face architecture, with its mapping table and how its config reads and writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from megatron_cod.huggingface.architecture import Architecture, Experts, Latent
from megatron_cod.huggingface.families import deepseek, dense, mixtral
from megatron_cod.huggingface.families.fields import Config, need, only, read_common, write_rope
from megatron_cod.huggingface.rows import Row


@dataclass(frozen=True)
class Family:
    """A stock architecture of Hugging Face."""

    name: str
    """Its ``model_type``."""
    model_class: str
    """What ``architectures`` names."""
    rows: tuple[Row, ...]
    read: Callable[[Config], dict[str, Any]]
    """Fields of ``Architecture`` beyond ``read_common``; ValueError for what Megatron's model does not compute."""
    write: Callable[[Architecture], dict[str, Any]]
    """Keys of the config beyond ``write_common``."""
    expresses: Callable[[Architecture], bool]
    """Whether the stock model computes this architecture."""


def _plain(arch: Architecture) -> bool:
    return arch.latent is None and arch.experts is None and arch.rope.kind != "yarn"


def _unbiased(arch: Architecture) -> bool:
    return not (arch.qkv_bias or arch.linear_bias)


def _read_llama(config: Config) -> dict[str, Any]:
    attention, mlp = bool(config.get("attention_bias")), bool(config.get("mlp_bias"))
    if attention != mlp:
        raise ValueError("config.json has attention_bias and mlp_bias differ; Megatron has both or neither")
    return {"linear_bias": attention}


def _read_mistral(_config: Config) -> dict[str, Any]:
    return {}


def _read_qwen2(_config: Config) -> dict[str, Any]:
    return {"qkv_bias": True}


def _read_qwen3(config: Config) -> dict[str, Any]:
    only(config, attention_bias=False)
    return {"qk_norm": True}


def _read_mixtral(config: Config) -> dict[str, Any]:
    ffn = int(need(config, "intermediate_size"))
    count, chosen = int(need(config, "num_local_experts")), int(need(config, "num_experts_per_tok"))
    return {"experts": Experts(count, chosen, ffn)}


def _write_mixtral(arch: Architecture) -> dict[str, Any]:
    assert arch.experts is not None
    return {
        "num_local_experts": arch.experts.count,
        "num_experts_per_tok": arch.experts.chosen,
        "intermediate_size": arch.experts.ffn,
        "router_aux_loss_coef": 0.001,
        "output_router_logits": False,
        "router_jitter_noise": 0.0,
        "sliding_window": None,
    }


def _is_mixtral(arch: Architecture) -> bool:
    found = arch.experts
    stock = found is not None and found == Experts(found.count, found.chosen, found.ffn)
    return stock and arch.latent is None and _unbiased(arch) and not arch.qk_norm


def _read_latent(config: Config) -> dict[str, Any]:
    # transformers gives the norms inside the attention its default epsilon, whatever rms_norm_eps says.
    only(config, attention_bias=False, mlp_bias=False, rms_norm_eps=1e-6, rope_interleave=True, moe_layer_freq=1)
    rank = config.get("q_lora_rank")
    latent = Latent(
        kv_rank=int(need(config, "kv_lora_rank")),
        nope=int(need(config, "qk_nope_head_dim")),
        rope=int(need(config, "qk_rope_head_dim")),
        value=int(need(config, "v_head_dim")),
        q_rank=None if rank is None else int(rank),
    )
    heads = int(need(config, "num_attention_heads"))
    only(config, num_key_value_heads=heads)
    return {"latent": latent, "groups": heads, "head_dim": latent.nope + latent.rope}


def _read_experts(config: Config, score: str) -> Experts | None:
    dense_layers = int(config.get("first_k_dense_replace") or 0)
    if dense_layers >= int(need(config, "num_hidden_layers")):
        return None
    ffn = int(need(config, "moe_intermediate_size"))
    return Experts(
        count=int(need(config, "n_routed_experts")),
        chosen=int(need(config, "num_experts_per_tok")),
        ffn=ffn,
        shared_ffn=ffn * int(config.get("n_shared_experts") or 0),
        dense_layers=dense_layers,
        score=score,
        scale=float(config.get("routed_scaling_factor") or 1.0),
    )


def _read_deepseek_v2(config: Config) -> dict[str, Any]:
    if config.get("topk_method", "greedy") != "greedy":
        raise ValueError(
            f"config.json has topk_method {config['topk_method']!r}: Megatron ranks groups of experts by another sum; "
            f"DeepSeek V2 is only known with greedy (V2-Lite)"
        )
    only(config, norm_topk_prob=False, scoring_func="softmax")
    return {**_read_latent(config), "experts": _read_experts(config, "pre_softmax")}


def _read_deepseek_v3(config: Config) -> dict[str, Any]:
    only(config, norm_topk_prob=True, scoring_func="sigmoid", topk_method="noaux_tc")
    experts = _read_experts(config, "sigmoid")
    groups, chosen = int(config.get("n_group") or 1), int(config.get("topk_group") or 1)
    if experts is not None and groups > 1:
        if experts.chosen // chosen != 2:
            raise ValueError(
                f"config.json chooses {experts.chosen} experts of {chosen} groups: Megatron ranks a group by its best "
                f"{experts.chosen // chosen}, DeepSeek V3 always by its best 2"
            )
        experts = replace(experts, groups=groups, chosen_groups=chosen)
    return {**_read_latent(config), "experts": experts}


def _write_deepseek(arch: Architecture) -> dict[str, Any]:
    assert arch.latent is not None
    found = arch.experts or Experts(1, 1, arch.ffn, dense_layers=arch.layers)
    return {
        "kv_lora_rank": arch.latent.kv_rank,
        "q_lora_rank": arch.latent.q_rank,
        "qk_nope_head_dim": arch.latent.nope,
        "qk_rope_head_dim": arch.latent.rope,
        "v_head_dim": arch.latent.value,
        "head_dim": arch.latent.rope,  # transformers takes the rotary size from it
        "num_key_value_heads": arch.heads,
        "n_routed_experts": found.count,
        "num_experts_per_tok": found.chosen,
        "moe_intermediate_size": found.ffn,
        "n_shared_experts": max(found.shared_ffn // found.ffn, 1),
        "first_k_dense_replace": found.dense_layers,
        "routed_scaling_factor": found.scale,
        "moe_layer_freq": 1,
        "attention_bias": False,
    }


def _write_deepseek_v2(arch: Architecture) -> dict[str, Any]:
    own = {"topk_method": "greedy", "n_group": None, "topk_group": None, "norm_topk_prob": False}
    return {**_write_deepseek(arch), **own, "scoring_func": "softmax"}


def _write_deepseek_v3(arch: Architecture) -> dict[str, Any]:
    found = arch.experts or Experts(1, 1, arch.ffn)
    own: dict[str, Any] = {"n_group": found.groups, "topk_group": found.chosen_groups, "norm_topk_prob": True}
    own |= {"topk_method": "noaux_tc", "num_nextn_predict_layers": 0, "rope_interleave": True}
    return {**_write_deepseek(arch), **own, "scoring_func": "sigmoid"}


def _is_deepseek(arch: Architecture, score: str) -> bool:
    found = arch.experts
    if arch.latent is None or not _unbiased(arch) or arch.eps != 1e-6 or arch.rope.kind not in ("default", "yarn"):
        return False
    if found is None:
        return score == "sigmoid"
    whole = found.shared_ffn and found.shared_ffn % found.ffn == 0  # transformers always builds shared experts
    grouped = found.groups == 1 or (score == "sigmoid" and found.chosen // found.chosen_groups == 2)
    return bool(found.score == score and whole and grouped)


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
        lambda arch: _plain(arch) and not arch.qk_norm and _unbiased(arch),
    ),
    Family(
        "qwen2",
        "Qwen2ForCausalLM",
        dense.ROWS,
        _read_qwen2,
        lambda _: {"use_sliding_window": False, "sliding_window": None},
        lambda arch: _plain(arch) and not arch.qk_norm and arch.qkv_bias and not arch.linear_bias,
    ),
    Family(
        "qwen3",
        "Qwen3ForCausalLM",
        dense.ROWS,
        _read_qwen3,
        lambda _: {"attention_bias": False, "use_sliding_window": False, "sliding_window": None},
        lambda arch: _plain(arch) and arch.qk_norm and _unbiased(arch),
    ),
    Family("mixtral", "MixtralForCausalLM", mixtral.ROWS, _read_mixtral, _write_mixtral, _is_mixtral),
    Family(
        "deepseek_v2",
        "DeepseekV2ForCausalLM",
        deepseek.ROWS,
        _read_deepseek_v2,
        _write_deepseek_v2,
        lambda arch: _is_deepseek(arch, "pre_softmax"),
    ),
    Family(
        "deepseek_v3",
        "DeepseekV3ForCausalLM",
        deepseek.ROWS,
        _read_deepseek_v3,
        _write_deepseek_v3,
        lambda arch: _is_deepseek(arch, "sigmoid"),
    ),
)

FAMILIES: dict[str, Family] = {row.name: row for row in _ROWS}


def get_family(name: str) -> Family:
    """The row called ``name``; ValueError names the known ones."""
    if name not in FAMILIES:
        raise ValueError(f"unknown architecture {name!r}; known are {', '.join(FAMILIES)}")
    return FAMILIES[name]


def choose_family(arch: Architecture, wanted: str | None = None) -> Family:
    """The first family whose stock model computes this architecture, or ``wanted``; ValueError when none does."""
    if wanted is not None:
        family = get_family(wanted)
        if not family.expresses(arch):
            fits = [row.name for row in _ROWS if row.expresses(arch)]
            raise ValueError(f"{wanted} does not compute this model; {', '.join(fits) or 'no known family'} does")
        return family
    for row in _ROWS:
        if row.expresses(arch):
            return row
    raise ValueError(f"no stock architecture computes this model ({describe(arch)}); known are {', '.join(FAMILIES)}")


def describe(arch: Architecture) -> str:
    """What sets an architecture apart, for messages."""
    found = [
        "latent attention" if arch.latent else "",
        f"experts ({arch.experts})" if arch.experts else "",
        "norms of queries and keys" if arch.qk_norm else "",
        "biases of q, k, v" if arch.qkv_bias else "",
        "biases" if arch.linear_bias else "",
        f"{arch.rope.kind} RoPE",
        f"norm epsilon {arch.eps:g}",
    ]
    return ", ".join(filter(None, found))


def architecture_of(config: Config) -> tuple[Architecture, list[str]]:
    """The architecture of a Hugging Face config, and notes on what is not carried over without harm.

    Raises ValueError for an unknown architecture, or a value that Megatron's model does not compute.
    """
    family = get_family(str(config.get("model_type") or "(none)"))
    arch = Architecture(family=family.name, **{**read_common(config), **family.read(config)})
    if arch.rope.kind == "yarn" and arch.latent is None:
        raise ValueError("yarn RoPE scaling is only known with DeepSeek's attention")
    if arch.rope.kind in ("linear", "llama3") and arch.latent is not None:
        raise ValueError(f"{arch.rope.kind} RoPE scaling is not known with DeepSeek's attention")
    notes = []
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    if window and int(window) < arch.positions:
        notes.append(
            f"the attention window of {window} tokens is not carried over: the function is the same up to that length, "
            f"so --max-position-embeddings is {window} instead of {arch.positions}"
        )
        arch = replace(arch, positions=int(window))
    return arch, notes


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
