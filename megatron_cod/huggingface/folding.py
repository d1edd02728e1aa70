"""Depth factors and learned branch scales, folded into weights of a stock Pre-LN model, and taken out again.

F(s * N(x)) with N(x) = gamma * x/rms is F(N'(x)) with gamma' = s * gamma; a * F(x) is F'(x), whose last projection has
its rows times a. The rows of schemes record which are stock Pre-LN models with other numbers (``schemes.row.Foldable``).
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from megatron_cod.checkpoint.scheme_record import recorded_identity
from megatron_cod.errors import UserError
from megatron_cod.huggingface.families.mapping_rows import BRANCH_NORMS, NORMS, Part
from megatron_cod.schemes.design import BlockDesign, design_from_record, plain_design
from megatron_cod.schemes.row import Foldable, Scheme, Site
from megatron_cod.schemes.sandwich import SANDWICH_LN
from megatron_cod.schemes.table import PRE_LN, SCHEMES

_SITES = {
    Part.ATTENTION_NORM: Site.ATTENTION_NORM,
    Part.MLP_NORM: Site.MLP_NORM,
    Part.ATTENTION_OUTPUT: Site.ATTENTION_OUTPUT,
    Part.MLP_OUTPUT: Site.MLP_OUTPUT,
    Part.ROUTER: Site.ROUTER,
    Part.ATTENTION_BRANCH_NORM: Site.ATTENTION_BRANCH_NORM,
    Part.MLP_BRANCH_NORM: Site.MLP_BRANCH_NORM,
}
_DECODER = "decoder."
_LAYERS = "decoder.layers."


@dataclass(frozen=True)
class Folding:
    """A norm scheme as a conversion sees it."""

    design: BlockDesign
    layers: int
    """Of the whole model."""

    @property
    def scheme(self) -> str:
        return self.design.scheme.name

    @property
    def is_stock(self) -> bool:
        """Whether a stock model's weights need no change."""
        return self.design.scheme is stock_scheme(self.branch_norms)

    @property
    def branch_norms(self) -> bool:
        """Whether the stock model has norms behind its branches, too."""
        return self._stock.branch_norms(self.design.options)

    @property
    def _stock(self) -> Foldable:
        assert isinstance(self.design.scheme.stock, Foldable)
        return self.design.scheme.stock

    @property
    def has_learned(self) -> bool:
        """Whether the branches have learned scales."""
        return bool(self._stock.learned)

    def learned(self, part: Part) -> str | None:
        """The checkpoint key of the scale, [hidden] or [1], that multiplies the output of a branch; None without one."""
        site = _SITES.get(part)
        name = None if site is None else self._stock.learned.get(site)
        return None if name is None else _LAYERS + name

    @property
    def shared(self) -> tuple[str, ...]:
        """Checkpoint keys of what all layers share."""
        return tuple(_DECODER + name for name in self._stock.shared)

    def makes(self, part: Part) -> bool:
        """Whether a layer's norm has no weight of its own: it is made of what all layers share."""
        return self._stock.gain is not None and part in (*NORMS, *BRANCH_NORMS)

    def gain(self, part: Part, layer: int | None, shared: Mapping[str, Tensor]) -> Tensor | None:
        """The gain [h] of a part of layer l (from 1), made of the tensors of ``shared``; None without one."""
        site = _SITES.get(part)
        if self._stock.gain is None or site is None or layer is None:
            return None
        named = {key.removeprefix(_DECODER): tensor for key, tensor in shared.items()}
        found: Tensor | None = self._stock.gain(named, site, layer, self.design.options)
        return found

    def factor(self, part: Part, layer: int | None) -> float:
        """What the scheme multiplies a part of layer l with (from 1), and a stock model does not."""
        site, options = _SITES.get(part), self.design.options
        divided = site in self._stock.divided(options)
        if layer is None or not (divided or site in self._stock.sites(options)):
            return 1.0
        factor = self.design.factor(layer, SimpleNamespace(num_layers=self.layers))
        return 1.0 if factor is None else 1 / factor if divided else factor

    def identity(self) -> dict[str, Any]:
        """As checkpoints record it."""
        return self.design.identity(SimpleNamespace(num_layers=self.layers))

    def options(self) -> dict[str, Any]:
        """The scheme's options by the names of their arguments, as a checkpoint records them: with defaults filled in."""
        return vars(design_from_record(self.identity()).options)


def stock_scheme(branch_norms: bool) -> Scheme:
    """The scheme that a stock model is of."""
    return SANDWICH_LN if branch_norms else PRE_LN


def folding(scheme: Scheme, layers: int) -> Folding:
    """A scheme without options."""
    return Folding(plain_design(scheme), layers)


def _foldable() -> list[tuple[str, Foldable]]:
    return [(row.name, row.stock) for row in SCHEMES.values() if isinstance(row.stock, Foldable)]


def foldable_schemes() -> list[str]:
    """The schemes that export to a stock architecture."""
    return [name for name, _ in _foldable()]


def unfoldable_schemes(branch_norms: bool) -> list[str]:
    """The schemes that an existing stock model can be treated as: with nothing learned that it does not have."""
    fitting = [row for row in _foldable() if row[1].branch_norms(SCHEMES[row[0]].options()) == branch_norms]
    return [name for name, stock in fitting if stock.imported and not stock.learned and stock.gain is None]


def learned_names() -> tuple[str, ...]:
    """The names in a layer of the learned scales of all schemes."""
    return tuple({name for _, stock in _foldable() for name in stock.learned.values()})


def folding_of(identity: Mapping[str, Any], layers: int) -> Folding:
    """The conversion of a recorded scheme; UserError, with the reason, for one that no stock architecture expresses."""
    design = design_from_record(identity)
    stock = design.scheme.stock
    if not isinstance(stock, Foldable):
        raise UserError(
            f"--norm-scheme {design.scheme.name} cannot be exported: {stock.reason}, and no stock architecture computes "
            f"that; what folds into one is {', '.join(foldable_schemes())}"
        )
    return Folding(design, layers)


def is_warming_up(args: Namespace, iteration: int, layer: int) -> bool:
    """Whether the branches of layer l (from 1) do not count in full yet (``--residual-warmup-steps``)."""
    return iteration < (getattr(args, "residual_warmup_steps", None) or 0) * layer


def folding_of_checkpoint(args: Namespace, iteration: int) -> Folding:
    """The same of a checkpoint's arguments. UserError, too, in the middle of ``--residual-warmup-steps``."""
    warmup = getattr(args, "residual_warmup_steps", None)
    if is_warming_up(args, iteration, args.num_layers):
        raise UserError(
            f"the checkpoint of step {iteration} is in the residual warm-up (--residual-warmup-steps {warmup}: until "
            f"step {warmup * args.num_layers}), where its branches do not count in full: no stock model computes that"
        )
    return folding_of(recorded_identity(args), args.num_layers)


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


def fold_less_one(
    weight: Tensor, factor: float | Tensor, dtype: torch.dtype, *, stored_less_one: bool = True
) -> Tensor:
    """gamma times factor, less 1, rounded once to ``dtype``; weight [hidden]: gamma less 1, or gamma itself."""
    exact = weight.double() + float(stored_less_one)
    factor = factor.double() if isinstance(factor, Tensor) else factor
    return (exact * factor - 1.0).to(dtype)


def unfold_less_one(folded: Tensor, held: float, wanted: float) -> tuple[Tensor, int]:
    """Gammas less 1 in fp32 that lack the factor ``wanted``, of those that lack ``held``, and how many do not fold back."""
    found = ((folded.double() + 1.0) * (held / wanted) - 1.0).float()
    return found, int((fold_less_one(found, wanted / held, folded.dtype) != folded).sum())
