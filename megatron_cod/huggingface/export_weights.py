"""How the units of one checkpoint become the tensors of a stock model: with depth factors, learned scales, multipliers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_cod.huggingface.checkpoint import MegatronCheckpoint
from megatron_cod.huggingface.families.architecture import Architecture
from megatron_cod.huggingface.families.mapping_rows import OUTPUTS, Unit, scale_queries
from megatron_cod.huggingface.families.table import get_family
from megatron_cod.huggingface.folding import Folding, fold, fold_less_one, unfold
from megatron_cod.huggingface.stock import WeightFactors, fields_of

_QUERIES = re.compile(r"decoder\.layers\.self_attention\.linear_qkv\.(weight|bias)")


def plain_norm(checkpoint: MegatronCheckpoint, unit: Unit) -> Tensor:
    """gamma itself, [hidden]; Megatron's zero-centred ones are stored less 1."""
    weight = checkpoint.read(unit)
    if fields_of(checkpoint.args).layernorm_zero_centered_gamma and weight.dim() == 1:
        weight = 1.0 + weight.float()
    return weight


def _is_norm(unit: Unit) -> bool:
    return unit.row.megatron[0].endswith(("norm.weight", "norm_weight"))


@dataclass(frozen=True)
class Making:
    """The conversion of one checkpoint."""

    checkpoint: MegatronCheckpoint
    arch: Architecture
    scheme: Folding
    factors: WeightFactors
    shared: Mapping[str, Tensor]
    """What all layers share, by checkpoint key."""

    def make(self, unit: Unit, dtype: torch.dtype) -> list[Tensor]:
        """The unit's tensors, rounded once to ``dtype``."""
        checkpoint, key, part = self.checkpoint, unit.row.megatron[0], unit.row.part
        gain = self.scheme.gain(part, unit.layer, self.shared)
        if gain is not None and self.scheme.makes(part):
            return unit.row.join.to_hf((gain - 1.0 if self.less_one else gain).to(dtype), self.arch)
        weight = checkpoint.read(unit)
        factor: float | Tensor = self.scheme.factor(part, unit.layer) * self._beside(key)
        learned = self.scheme.learned(part)
        if gain is not None:
            factor = factor * gain
        if learned is not None:
            factor = factor * checkpoint.learned_scale(learned, unit)
        if _is_norm(unit):
            return unit.row.join.to_hf(self._norm(unit, weight, factor, dtype), self.arch)
        if _QUERIES.fullmatch(key) and self.factors.queries != 1.0 and not self.arch.qk_norm:
            weight = scale_queries(weight.float(), self.arch, self.factors.queries)
        if part in OUTPUTS and self.arch.multipliers.residual != 1.0:  # the stock model multiplies it again
            weight, _ = unfold(weight.float(), self.arch.multipliers.residual)
        return unit.row.join.to_hf(fold(weight, factor, dtype), self.arch)

    @property
    def less_one(self) -> bool:
        """Whether the stock model's norms are stored less 1."""
        return get_family(self.arch.family).less_one

    def _norm(self, unit: Unit, weight: Tensor, factor: float | Tensor, dtype: torch.dtype) -> Tensor:
        """The weight [hidden] of a norm; Megatron's and the stock model's may each be gamma or gamma less 1."""
        if not self.less_one:
            return fold(plain_norm(self.checkpoint, unit), factor, dtype)
        if self.stored_less_one and isinstance(factor, float) and factor == 1.0:
            return weight.to(dtype)
        return fold_less_one(weight, factor, dtype, stored_less_one=self.stored_less_one)

    @property
    def stored_less_one(self) -> bool:
        return bool(fields_of(self.checkpoint.args).layernorm_zero_centered_gamma)

    def _beside(self, key: str) -> float:
        """The model's multiplier of a whole tensor."""
        if key == "embedding.word_embeddings.weight":
            return self.factors.embedding
        if key == "decoder.final_layernorm.weight":
            return self.factors.final_norm
        return self.factors.queries if key.endswith(".q_layernorm.weight") and self.arch.qk_norm else 1.0
