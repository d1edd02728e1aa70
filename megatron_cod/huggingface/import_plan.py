"""What an import writes: each unit as pieces of Megatron's global tensors, with the change of scheme."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce

import torch
from torch import Tensor

from megatron_cod.checkpoint.writer import Piece
from megatron_cod.huggingface.companions import Originals
from megatron_cod.huggingface.families.architecture import Architecture
from megatron_cod.huggingface.families.mapping_rows import NORMS, OUTPUTS, Row, Unit
from megatron_cod.huggingface.families.table import get_family
from megatron_cod.huggingface.folding import Folding, fold, unfold, unfold_less_one
from megatron_cod.huggingface.weights_reader import Source


@dataclass(frozen=True)
class Change:
    """From the scheme of the source's numbers to that of the checkpoint's."""

    held: Folding
    """What the stored numbers still lack: a stock model's lack nothing."""
    wanted: Folding
    originals: Originals
    residual: float = 1.0
    """What the source's model multiplies each branch with, and Megatron's does not."""

    def factors(self, unit: Unit) -> tuple[float, float]:
        """What the numbers of the source, and those of the checkpoint, lack."""
        part = unit.row.part
        beside = self.residual if part in OUTPUTS else 1.0
        return self.held.factor(part, unit.layer) * beside, self.wanted.factor(part, unit.layer)

    def original(self, source: Source, unit: Unit) -> Tensor | None:
        """What the export kept of a weight before it folded it, as long as it still folds to the weight."""
        held, wanted = self.factors(unit)
        name = unit.names[0]
        if held != 1.0 or wanted == 1.0 or name not in self.originals.names:
            return None
        return self.originals.take(name, source.read(name), wanted)


def _make(
    source: Source, unit: Unit, arch: Architecture, factors: tuple[float, float], inexact: Callable[[int], None]
) -> Tensor:
    parts = [source.read(name) for name in unit.names]
    held, wanted = factors
    if held != wanted:
        (stored,) = parts
        if unit.row.part in NORMS and get_family(arch.family).less_one:
            found, lost = unfold_less_one(stored, held, wanted)
        else:
            found, lost = unfold(stored if held == 1.0 else fold(stored, held, torch.float32), wanted)
        inexact(lost)
        parts = [found]
    return unit.row.join.to_megatron(parts, arch)


def _uncounted(_elements: int) -> None:
    """Another spelling of the same weight: its lost elements are counted once."""


def _same(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class _Planned:
    unit: Unit
    dtype: torch.dtype
    makers: tuple[Callable[[], Tensor], ...]
    """One for each of the row's keys."""


def _planned(
    source: Source, unit: Unit, arch: Architecture, change: Change, inexact: Callable[[int], None]
) -> _Planned:
    keys = len(unit.row.megatron)
    original = change.original(source, unit)
    if original is not None:
        return _Planned(unit, original.dtype, (partial(_same, original),) * keys)
    factors = change.factors(unit)
    dtype = source.dtype(unit.names) if factors[0] == factors[1] else torch.float32
    counts = [inexact, *[_uncounted] * (keys - 1)]
    return _Planned(unit, dtype, tuple(partial(_make, source, unit, arch, factors, count) for count in counts))


_Stack = tuple[Row, int | None]


def _stack(unit: Unit) -> _Stack:
    return unit.row, unit.prediction


def _dtypes(planned: Sequence[_Planned]) -> dict[_Stack, torch.dtype]:
    """Row, prediction layer -> the type that holds it in every layer: a stack of layers is one tensor, of one type."""
    found: dict[_Stack, list[torch.dtype]] = {}
    for one in planned:
        found.setdefault(_stack(one.unit), []).append(one.dtype)
    return {row: reduce(torch.promote_types, dtypes) for row, dtypes in found.items()}


def plan_pieces(
    source: Source, wanted: Sequence[Unit], arch: Architecture, change: Change, inexact: Callable[[int], None]
) -> list[Piece]:
    """All pieces, in the order of the model; nothing is read yet but the kept originals of norms.

    inexact: called while pieces are made, with the number of elements that no fp32 number folds back to.
    """
    # Layers of one kind are one stack in Megatron's checkpoints; of two kinds, keys with the number from 0.
    numbered = arch.experts is not None and arch.experts.dense_layers > 0
    planned = [_planned(source, unit, arch, change, inexact) for unit in wanted]
    dtypes = _dtypes(planned)
    pieces = []
    for one in planned:
        unit = one.unit
        shape = unit.megatron_shape(arch)
        whole, offsets = list(shape), [0] * len(shape)
        if unit.expert is not None and arch.experts is not None:
            whole, offsets = [arch.experts.count, *whole], [unit.expert, *offsets]
        stacked = unit.layer is not None and unit.prediction is None
        if unit.layer is not None and stacked and not numbered:
            whole, offsets = [arch.layers, *whole], [unit.layer - 1, *offsets]
        lead = len(whole) - len(shape)
        for key, make in zip(unit.row.megatron, one.makers, strict=True):
            key, _ = unit.place(key)
            if unit.layer is not None and stacked and numbered:
                key = key.replace("decoder.layers.", f"decoder.layers.{unit.layer - 1}.", 1)
            sizes = (*[1] * lead, *shape)
            pieces.append(Piece(key, tuple(offsets), sizes, tuple(whole), dtypes[_stack(unit)], lead, make))
    return pieces
