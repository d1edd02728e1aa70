"""Shapes of the models: given, or found for a depth and a number of non-embedding parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_cod.errors import UserError

_MULTIPLE = 8
"""Of the MLP's width."""
_RATIOS = (2.0, 4.0)
"""Of the MLP's width to the hidden size, at least and at most."""
_USUAL_RATIO = 8 / 3
_TOLERANCE = 0.02
"""By which the number of parameters may miss what is asked."""


@dataclass(frozen=True)
class Shape:
    """A Llama shape: SwiGLU, RMSNorm, no biases, all heads with keys and values of their own."""

    layers: int
    hidden: int
    ffn: int
    heads: int

    @property
    def name(self) -> str:
        return f"{self.layers} layers x {self.hidden}"

    @property
    def folder(self) -> str:
        return f"L{self.layers}_h{self.hidden}"

    @property
    def non_embedding(self) -> int:
        """Parameters without the embedding and the output layer."""
        block = 4 * self.hidden**2 + 3 * self.hidden * self.ffn + 2 * self.hidden
        return self.layers * block + self.hidden

    def flags(self) -> list[str]:
        """For the training program."""
        return [
            *("--num-layers", str(self.layers), "--hidden-size", str(self.hidden)),
            *("--ffn-hidden-size", str(self.ffn), "--num-attention-heads", str(self.heads)),
        ]

    def flops_per_token(self, vocabulary: int, length: int) -> float:
        """Forward and backward: 6 for each weight of a matrix product, and attention, counted in full."""
        matrices = self.non_embedding - (2 * self.layers + 1) * self.hidden + vocabulary * self.hidden
        return 6.0 * matrices + 12.0 * self.layers * length * self.hidden


def std_by_width(hidden: int) -> float:
    """Standard deviation of the initial weights: Megatron's 0.02 at hidden size 1000, and so much more below it."""
    return float(f"{0.02 * math.sqrt(1000 / hidden):.4g}")


def shape_of(layers: int, parameters: float, head: int) -> Shape:
    """The shape with so many layers that is nearest to the number of non-embedding parameters; heads have size ``head``.

    Of those within 0.5% the one whose MLP is nearest to 8/3 of the hidden size. UserError where none is within 2%.
    """
    found = [one for one in _candidates(layers, parameters, head) if _miss(one, parameters) <= _TOLERANCE]
    if not found:
        raise UserError(
            f"no width gives {parameters:,.0f} non-embedding parameters at {layers} layers with heads of {head}; "
            "change non-embedding-parameters, depths or head-size"
        )
    near = [one for one in found if _miss(one, parameters) <= 0.005] or found
    return min(near, key=lambda one: (abs(one.ffn / one.hidden - _USUAL_RATIO), one.hidden))


def _miss(shape: Shape, parameters: float) -> float:
    return abs(shape.non_embedding / parameters - 1)


def _candidates(layers: int, parameters: float, head: int) -> Sequence[Shape]:
    found = []
    for heads in range(1, 1 + int((parameters / layers) ** 0.5 / head) + 1):
        hidden = heads * head
        rest = parameters / layers - 4 * hidden**2 - 2 * hidden
        ffn = round(rest / (3 * hidden) / _MULTIPLE) * _MULTIPLE
        if ffn > 0 and _RATIOS[0] <= ffn / hidden <= _RATIOS[1]:
            found.append(Shape(layers, hidden, ffn, heads))
    return found
