"""Depth factors and learned branch scales, folded into weights of a stock Pre-LN model, and taken out again.

F(s * N(x)) with N(x) = gamma * x/rms is F(N'(x)) with gamma' = s * gamma; a * F(x) is F'(x), whose last projection has
its rows times a. So LNS, LayerScale and SkipInit are stock Pre-LN models with other numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megatron_cod.huggingface.rows import NORMS, OUTPUTS, Part
from megatron_cod.identity import recorded_identity
from megatron_cod.schemes.depth import DEPTH_EXPONENT, depth_factor

_NORMS_OF = {
    "both": NORMS,
    "attention": (Part.ATTENTION_NORM,),
    "mlp": (Part.MLP_NORM,),
    "branch_output": OUTPUTS,
}
LEARNED = {
    Part.ATTENTION_OUTPUT: "decoder.layers.self_attn_bda.scale",
    Part.MLP_OUTPUT: "decoder.layers.mlp_bda.scale",
}
"""Where LayerScale and SkipInit keep their vectors, [hidden] or [1]."""

_NO_STOCK = {
    "post_ln": "its norms stand after the residual sum",
    "mix_ln": "the norms of its first blocks stand after the residual sum",
    "deepnorm": "its norms stand after the residual sum, which it weighs",
    "sandwich_ln": "it has a second norm behind each branch",
}


@dataclass(frozen=True)
class Folding:
    """A norm scheme as a conversion sees it."""

    scheme: str = "pre_ln"
    exponent: float = 0.0
    placement: str = "both"

    @property
    def learned(self) -> bool:
        """Whether the branches have learned scales."""
        return self.scheme in ("layerscale", "skipinit")

    def factor(self, part: Part, layer: int | None) -> float:
        """What the scheme multiplies a part of layer l with (from 1), and a stock model does not."""
        if self.scheme != "lns" or layer is None or part not in _NORMS_OF[self.placement]:
            return 1.0
        return depth_factor(layer, self.exponent)

    def identity(self) -> dict[str, Any]:
        """As checkpoints record it."""
        found: dict[str, Any] = {"norm_scheme": self.scheme, "scheme_exponent": self.exponent}
        return found | ({"lns_placement": self.placement} if self.scheme == "lns" else {})


PRE_LN = Folding()
LNS = Folding("lns", DEPTH_EXPONENT, "both")


def folding_of(identity: Mapping[str, Any]) -> Folding:
    """The conversion of a recorded scheme; ValueError, with the reason, for one that no stock architecture expresses."""
    scheme = identity.get("norm_scheme", "pre_ln")
    if scheme in _NO_STOCK:
        raise ValueError(
            f"--norm-scheme {scheme} cannot be exported: {_NO_STOCK[scheme]}, and no stock architecture computes that; "
            f"what folds into one is pre_ln, lns, layerscale and skipinit"
        )
    if scheme not in ("pre_ln", "lns", "layerscale", "skipinit"):
        raise ValueError(f"norm scheme {scheme!r} is unknown here")
    if scheme != "lns":
        return Folding(scheme)
    placement = identity.get("lns_placement") or "both"
    return Folding("lns", float(identity.get("scheme_exponent", DEPTH_EXPONENT)), placement)


def folding_of_checkpoint(args: Any, iteration: int) -> Folding:
    """The same of a checkpoint's arguments. ValueError, too, in the middle of ``--residual-warmup-steps``."""
    warmup = getattr(args, "residual_warmup_steps", None)
    if warmup and iteration < warmup * args.num_layers:
        raise ValueError(
            f"the checkpoint of step {iteration} is in the residual warm-up (--residual-warmup-steps {warmup}: until "
            f"step {warmup * args.num_layers}), where its branches do not count in full: no stock model computes that"
        )
    return folding_of(recorded_identity(args))


def fold(weight: Tensor, factor: float | Tensor, dtype: torch.dtype) -> Tensor:
    """factor * weight, computed in fp32 and rounded once to ``dtype``.

    factor: a number, or one for each row. weight: [...]. The product is the one that the forward computes.
    """
    if isinstance(factor, float) and factor == 1.0:
        return weight.to(dtype)
    if isinstance(factor, Tensor):
        factor = factor.float().reshape(-1, *[1] * (weight.dim() - 1))
    return (weight.float() * factor).to(dtype)


def unfold(folded: Tensor, factor: float) -> tuple[Tensor, int]:
    """A weight in fp32 with fold(weight, factor, folded.dtype) == folded, and for how many elements there is none.

    folded: [...]. The number nearest to the quotient has the product nearest to ``folded``: where it does not fold back,
    no number does. For bf16 and fp16 it always does; fp32 is not wide enough for it everywhere, unless ``folded`` is
    such a product itself. Then the product is a neighbour.
    """
    if factor == 1.0:
        return folded.float(), 0
    # The factor as fp32 has it, which is what the forward multiplies by; the quotient is rounded once.
    found = (folded.double() / torch.tensor(factor, dtype=torch.float32).double()).float()
    return found, int((fold(found, factor, folded.dtype) != folded).sum())
