"""Granite 3: a Llama that multiplies the embedding, the attention's scores, each branch and the logits by constants."""

from typing import Any

from megatron_cod.errors import UserError
from megatron_cod.huggingface.families.architecture import BIASES, SCALED_ROPE, Architecture, Multipliers
from megatron_cod.huggingface.families.config_fields import Config
from megatron_cod.huggingface.families.dense import ROWS, read_biases, write_biases
from megatron_cod.huggingface.families.family import Family

_MULTIPLIERS = ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling")


def _read(config: Config) -> dict[str, Any]:
    found = [float(config.get(name, 1.0)) for name in _MULTIPLIERS]
    for name, value in zip(_MULTIPLIERS, found, strict=True):
        if not value > 0:
            raise UserError(f"config.json has {name} {value:g}; it must be more than 0")
    embedding, attention, residual, logits = found
    return {**read_biases(config), "multipliers": Multipliers(embedding, attention, residual, 1 / logits)}


def _short(value: float) -> float:
    """Without the last digits of a quotient."""
    return float(f"{value:.12g}")


def _write(arch: Architecture) -> dict[str, Any]:
    found = arch.multipliers
    attention = arch.head_dim**-0.5 if found.attention is None else found.attention
    values = (found.embedding, attention, found.residual, 1 / found.logits)
    return {**write_biases(arch), **dict(zip(_MULTIPLIERS, map(_short, values), strict=True))}


GRANITE = Family(
    "granite",
    "GraniteForCausalLM",
    ROWS,
    _read,
    _write,
    may_have=SCALED_ROPE | {BIASES},
    multiplies=lambda arch: arch.multipliers,
    reads=frozenset(_MULTIPLIERS),
)
