"""A yardstick that lives here only: LayerNorm Scaling done naively, as norm(x) * s on activations.

The same function as ``lns``, one more pass over [s, b, h] per norm in the forward and in the backward, and one more
activation kept. Its distance to ``lns`` is what multiplying gamma avoids.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from megatron_cod.schemes.depth import depth_factor
from megatron_cod.schemes.row import Scheme
from megatron_cod.schemes.table import SCHEMES, register_scheme

NAME = "lns_activation"


class _ScaledOutput(torch.nn.Module):
    """factor * norm(x), multiplied after the norm."""

    def __init__(self, norm: torch.nn.Module, factor: float) -> None:
        super().__init__()
        self.norm = norm
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) * self.factor


def _scale_outputs(layer: Any, number: int, *_: Any) -> None:
    for name in ("input_layernorm", "pre_mlp_layernorm"):
        setattr(layer, name, _ScaledOutput(getattr(layer, name), depth_factor(number)))


@contextmanager
def registered() -> Iterator[None]:
    """Let models be built with the yardstick; the project's own table is as before afterwards."""
    row = Scheme(
        name=NAME,
        block="x + F(N(x) / sqrt(l))",
        reference="the same factor on activations; benchmark only",
        default_init="normal",
        bind=_scale_outputs,
    )
    register_scheme(row)
    try:
        yield
    finally:
        del SCHEMES[NAME]
