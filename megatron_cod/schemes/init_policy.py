"""Initialisation policies: what a block's projections start from.

``normal`` and ``scaled`` are set on Megatron's config before the model is built. The others differ by layer or by part of
a weight, which no config field can say: there everything starts from N(0, std), and each layer, once it knows its number,
multiplies its own shards. That needs no random number, so a weight is the same at every layout.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_cod.errors import UserError
from megatron_cod.schemes.table import get_scheme

_OUTPUT = ("linear_proj.weight", "linear_fc2.weight")
_MLP = ("linear_fc1.weight", "linear_fc2.weight")

Rescale = Callable[[Any, int, TransformerConfig], None]


def _weights(layer: Any, kinds: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
    """The layer's parameters of some kinds; grouped experts number theirs, ``linear_fc1.weight0``."""
    for name, parameter in layer.named_parameters():
        if name.rstrip("0123456789").endswith(kinds):
            if parameter.is_meta:
                raise UserError("this --init-policy does not support --init-model-with-meta-device; omit one")
            yield name, parameter


def _depth_scaled(layer: Any, number: int, _config: TransformerConfig) -> None:
    """std / sqrt(2 l) on the output projections of block l (METHOD, scaling-methods table)."""
    for _, weight in _weights(layer, _OUTPUT):
        weight.data.mul_((2 * number) ** -0.5)


def _whole(name: str, weight: Any, config: TransformerConfig) -> tuple[int, int]:
    """(rows, columns) of a weight over all tensor-parallel ranks."""
    expert = ".experts." in name and "shared" not in name
    size = config.expert_tensor_parallel_size if expert else config.tensor_model_parallel_size
    shape = list(weight.shape)
    if getattr(weight, "tensor_model_parallel", False):
        shape[weight.partition_dim] *= size or 1
    return shape[0], shape[1]


def xavier_std(fan_in: int, fan_out: int, gain: float) -> float:
    """Of Glorot's normal initialisation."""
    return gain * math.sqrt(2.0 / (fan_in + fan_out))


def deepnorm_beta(num_layers: int) -> float:
    """(8L)^(-1/4), L the blocks of the whole model (arXiv 2203.00555, decoder-only)."""
    return (8 * num_layers) ** -0.25


def _deepnorm(layer: Any, _number: int, config: TransformerConfig) -> None:
    """Xavier-normal: gain 1 on q and k, beta on v, the attention's output and the MLP (arXiv 2203.00555)."""
    if config.multi_latent_attention:
        raise UserError("--init-policy deepnorm is not defined for --multi-latent-attention; give --init-policy normal")
    std, beta = config.init_method_std, deepnorm_beta(config.num_layers)
    hidden, d = config.hidden_size, config.kv_channels or config.hidden_size // config.num_attention_heads
    groups = config.num_query_groups or config.num_attention_heads
    queries = config.num_attention_heads // groups
    for _, weight in _weights(layer, ("linear_qkv.weight",)):
        # Megatron's rows: for each group its queries, then its key, then its value.
        by_group = weight.data.view(-1, queries + 2, d, hidden)
        by_group[:, :-2].mul_(xavier_std(hidden, config.num_attention_heads * d, 1.0) / std)
        by_group[:, -2].mul_(xavier_std(hidden, groups * d, 1.0) / std)
        by_group[:, -1].mul_(xavier_std(hidden, groups * d, beta) / std)
    for name, weight in _weights(layer, ("linear_proj.weight", *_MLP)):
        rows, columns = _whole(name, weight, config)
        if "linear_fc1" in name and config.gated_linear_unit:
            rows //= 2  # gate and up are two matrices
        weight.data.mul_(xavier_std(columns, rows, beta) / std)


@dataclass(frozen=True)
class InitPolicy:
    """A policy: what it says in the log, and what it does."""

    text: str
    scaled_outputs: bool = False
    """Whether Megatron's 1/sqrt(2L) on output projections stays."""
    rescale: Rescale | None = None
    """Applied to each built layer with its global number, after Megatron's N(0, std)."""


INIT_POLICIES: dict[str, InitPolicy] = {
    "normal": InitPolicy("output projections start from N(0, std); Megatron's 1/sqrt(2L) scaling is off"),
    "scaled": InitPolicy("output projections start from N(0, std/sqrt(2L)), as Megatron ships", scaled_outputs=True),
    "depth_scaled": InitPolicy("output projections of block l start from N(0, std/sqrt(2l))", rescale=_depth_scaled),
    "deepnorm": InitPolicy(
        "Xavier-normal, gain 1 on q and k, (8L)^(-1/4) on v, attention output and MLP", rescale=_deepnorm
    ),
}


def resolve_init_policy(scheme_name: str, asked: str | None) -> tuple[str, str]:
    """The policy to use and one line for the log that says which and why.

    asked: the user's ``--init-policy``, or None to take the scheme's default.
    """
    default = get_scheme(scheme_name).default_init
    policy = asked or default
    if policy not in INIT_POLICIES:
        raise UserError(f"no init policy {policy!r}, there are {', '.join(INIT_POLICIES)}")
    who = "asked for by --init-policy" if asked else f"the default of {scheme_name}"
    note = get_scheme(scheme_name).notes.get(policy)
    return policy, f"init policy {policy} ({who}): {INIT_POLICIES[policy].text}" + (f"; {note}" if note else "")


def apply_init_policy(config: TransformerConfig, policy: str) -> None:
    """Set the initialisers of ``config`` in place. Call it after ``TransformerConfig`` filled its defaults."""
    if not INIT_POLICIES[policy].scaled_outputs:
        config.output_layer_init_method = config.init_method
