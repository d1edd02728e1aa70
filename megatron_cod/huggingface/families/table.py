"""FAMILIES: one row per Hugging Face architecture, with its mapping table and how its config reads and writes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from megatron_cod.errors import UserError, bad_input
from megatron_cod.huggingface.families.architecture import GEGLU, PARTIAL_ROPE, Architecture
from megatron_cod.huggingface.families.config_fields import (
    Config,
    check_latent_rope,
    name_of,
    read_common,
    write_rope,
)
from megatron_cod.huggingface.families.deepseek import DEEPSEEK_V2, DEEPSEEK_V3
from megatron_cod.huggingface.families.dense import LLAMA, MISTRAL, QWEN2, QWEN3, SMOLLM3
from megatron_cod.huggingface.families.family import Family
from megatron_cod.huggingface.families.gemma import GEMMA, GEMMA2, GEMMA3
from megatron_cod.huggingface.families.glm import GLM, GLM4
from megatron_cod.huggingface.families.granite import GRANITE
from megatron_cod.huggingface.families.mixtral import MIXTRAL
from megatron_cod.huggingface.families.phi3 import PHI3
from megatron_cod.huggingface.families.qwen3_moe import QWEN3_MOE
from megatron_cod.huggingface.families.unsupported import UNSUPPORTED

# An export takes the first that computes the model.
_ROWS = (
    *(LLAMA, MISTRAL, QWEN2, QWEN3, SMOLLM3, PHI3),
    *(GRANITE, GLM, GLM4, GEMMA, GEMMA2, GEMMA3),
    *(QWEN3_MOE, MIXTRAL, DEEPSEEK_V2, DEEPSEEK_V3),
)

FAMILIES: dict[str, Family] = {row.name: row for row in _ROWS}


def register_family(row: Family) -> Family:
    """Add a row to ``FAMILIES``, behind the others, and return it. UserError for a name that another row has."""
    if row.name in FAMILIES:
        raise UserError(f"the family {row.name!r} is registered already")
    FAMILIES[row.name] = row
    return row


def get_family(name: str) -> Family:
    """The row called ``name``; UserError names the known ones."""
    if name in UNSUPPORTED and name not in FAMILIES:
        raise UserError(f"architecture {name!r} cannot be carried over: {UNSUPPORTED[name]}")
    if name not in FAMILIES:
        raise UserError(f"unknown architecture {name!r}; known are {', '.join(FAMILIES)}")
    return FAMILIES[name]


def choose_family(arch: Architecture, wanted: str | None = None) -> Family:
    """The first family whose stock model computes this architecture, or ``wanted``; UserError when none does."""
    if wanted is not None:
        family = get_family(wanted)
        if not family.expresses(arch):
            fits = [row.name for row in FAMILIES.values() if row.expresses(arch)]
            raise UserError(f"{wanted} does not compute this model; {', '.join(fits) or 'no known family'} does")
        return family
    for row in FAMILIES.values():
        if row.expresses(arch):
            return row
    raise UserError(f"no stock architecture computes this model ({describe(arch)}); known are {', '.join(FAMILIES)}")


def describe(arch: Architecture) -> str:
    """What sets an architecture apart, for messages."""
    experts = [str(arch.experts)] if arch.experts else []
    return ", ".join([*sorted(arch.features()), *experts, f"norm epsilon {arch.eps:g}"])


def architecture_of(config: Config) -> tuple[Architecture, list[str]]:
    """The architecture of a Hugging Face config, and notes on what is not carried over without harm.

    Raises UserError for an unknown architecture, or a value that Megatron's model does not compute.
    """
    family = get_family(str(config.get("model_type") or "(none)"))
    with bad_input("config.json"):
        config = family.prepare(config)
        arch = Architecture(family=family.name, **{**read_common(config), **family.read(config)})
    if arch.latent is not None:
        check_latent_rope(arch.rope)
    _check_share(arch, family)
    if GEGLU in arch.features() - family.may_have:
        raise UserError(
            f"config.json has the gate {arch.activation}, which is not known in {family.name}; only silu is"
        )
    notes = []
    window = _window(config)
    if window and int(window) < arch.positions:
        notes.append(
            f"the attention window of {window} tokens is not carried over: the function is the same up to that length, "
            f"so --max-position-embeddings is {window} instead of {arch.positions}"
        )
        arch = replace(arch, positions=int(window))
    return arch, notes


def _check_share(arch: Architecture, family: Family) -> None:
    """UserError for RoPE on a part of each head that a family or Megatron does not compute."""
    share, rotated = arch.rope.share, arch.rotated()
    if share == 1.0:
        return
    if PARTIAL_ROPE not in family.may_have:
        raise UserError(f"config.json has partial_rotary_factor {share}; only 1.0 can be carried over")
    if rotated < 2 or rotated % 2 or share > 1:
        raise UserError(
            f"config.json has partial_rotary_factor {share}: {rotated} of {arch.head_dim} channels are no pairs"
        )
    if arch.rope.kind == "yarn":
        raise UserError(f"yarn RoPE scaling with partial_rotary_factor {share}: Megatron's yarn turns whole heads")


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
        "hidden_act": name_of(arch.activation),
        "max_position_embeddings": arch.positions,
        "rms_norm_eps": arch.eps,
        "tie_word_embeddings": arch.tied,
        "attention_dropout": 0.0,
        **write_rope(arch.rope),
        **family.write(arch),
    }
