"""A family's mapping table: one row per parameter, and the units that it comes to for one model.

A unit is what is converted at once: the tensors of one row, of one layer, of one expert.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto

import torch
from torch import Tensor

from megatron_cod.huggingface.families.architecture import Architecture


class Part(Enum):
    """What a parameter is to a norm scheme."""

    OTHER = auto()
    ATTENTION_NORM = auto()
    MLP_NORM = auto()
    ATTENTION_OUTPUT = auto()
    MLP_OUTPUT = auto()
    ROUTER = auto()
    ATTENTION_BRANCH_NORM = auto()
    MLP_BRANCH_NORM = auto()


NORMS = (Part.ATTENTION_NORM, Part.MLP_NORM)
BRANCH_NORMS = (Part.ATTENTION_BRANCH_NORM, Part.MLP_BRANCH_NORM)
OUTPUTS = (Part.ATTENTION_OUTPUT, Part.MLP_OUTPUT)


@dataclass(frozen=True)
class Join:
    """How the tensors of Hugging Face become Megatron's one, and back. Exact: no value is changed."""

    to_megatron: Callable[[Sequence[Tensor], Architecture], Tensor]
    to_hf: Callable[[Tensor, Architecture], list[Tensor]]


def _interleave(parts: Sequence[Tensor], arch: Architecture) -> Tensor:
    """q [heads * d, ...], k and v [groups * d, ...] -> for each group its queries, its key, its value."""
    rest = parts[0].shape[1:]
    split = [part.reshape(arch.groups, -1, *rest) for part in parts]
    return torch.cat(split, dim=1).reshape(-1, *rest)


def _deinterleave(whole: Tensor, arch: Architecture) -> list[Tensor]:
    d, rest = arch.head_dim, whole.shape[1:]
    grouped = whole.reshape(arch.groups, -1, *rest)
    parts = grouped.split([arch.heads // arch.groups * d, d, d], dim=1)
    return [part.reshape(-1, *rest) for part in parts]


def _pairs_apart(part: Tensor, arch: Architecture) -> Tensor:
    """Rows of heads [n * d, ...] whose rotated channels are pairs (2i, 2i + 1) -> pairs (i, i + r/2), as Megatron turns."""
    heads, r = part.reshape(-1, arch.head_dim, *part.shape[1:]), arch.rotated()
    return torch.cat([heads[:, 0:r:2], heads[:, 1:r:2], heads[:, r:]], dim=1).reshape(part.shape)


def _pairs_together(part: Tensor, arch: Architecture) -> Tensor:
    heads, r = part.reshape(-1, arch.head_dim, *part.shape[1:]), arch.rotated()
    turned = torch.stack([heads[:, : r // 2], heads[:, r // 2 : r]], dim=2).flatten(1, 2)
    return torch.cat([turned, heads[:, r:]], dim=1).reshape(part.shape)


def _from_pairs(parts: Sequence[Tensor], arch: Architecture) -> Tensor:
    queries, keys, values = parts
    return _interleave([_pairs_apart(queries, arch), _pairs_apart(keys, arch), values], arch)


def _to_pairs(whole: Tensor, arch: Architecture) -> list[Tensor]:
    queries, keys, values = _deinterleave(whole, arch)
    return [_pairs_together(queries, arch), _pairs_together(keys, arch), values]


def _split_qkv(whole: Tensor, arch: Architecture) -> Sequence[Tensor]:
    d = arch.head_dim
    return whole.split([arch.heads * d, arch.groups * d, arch.groups * d])


def _pad(parts: Sequence[Tensor], arch: Architecture) -> Tensor:
    (part,) = parts
    missing = arch.padded_vocab - part.shape[0]
    return part if missing == 0 else torch.cat([part, part.new_zeros(missing, *part.shape[1:])])


def scale_queries(whole: Tensor, arch: Architecture, factor: float) -> Tensor:
    """Megatron's tensor of queries, keys and values with the queries times ``factor``."""
    queries, *others = _deinterleave(whole, arch)
    return _interleave([queries * factor, *others], arch)


SAME = Join(lambda parts, _: parts[0], lambda whole, _: [whole])
QKV = Join(_interleave, _deinterleave)
PAIRED_QKV = Join(_from_pairs, _to_pairs)
"""Of models that turn neighbouring channels."""
FUSED_QKV = Join(
    lambda parts, arch: _interleave(_split_qkv(parts[0], arch), arch),
    lambda whole, arch: [torch.cat(_deinterleave(whole, arch))],
)
GATE_UP = Join(lambda parts, _: torch.cat(list(parts)), lambda whole, _: list(whole.chunk(2)))
VOCABULARY = Join(_pad, lambda whole, arch: [whole[: arch.vocab]])

Condition = Callable[[Architecture, int], bool]


def always(_arch: Architecture, _layer: int) -> bool:
    return True


@dataclass(frozen=True)
class Row:
    """One parameter of Megatron, and the tensors of Hugging Face that it holds."""

    megatron: tuple[str, ...]
    """Its keys in checkpoints, without a layer number: the second one is how another backend spells it."""
    hf: tuple[tuple[str, str], ...]
    """(name, sizes): ``{l}`` is the layer from 0, ``{e}`` the expert from 0; sizes are keys of ``Architecture.dims``."""
    join: Join = SAME
    part: Part = Part.OTHER
    when: Condition = always
    copy: bool = False
    """Another copy of a tensor of the model, which an export writes and an import compares."""

    @property
    def per_layer(self) -> bool:
        return "{l}" in self.hf[0][0]

    @property
    def per_expert(self) -> bool:
        return "{e}" in self.hf[0][0]


@dataclass(frozen=True)
class Unit:
    """The tensors of one row in one layer (from 1; None outside the layers) and one expert (from 0).

    Layers of multi-token prediction are those behind the last one of the model.
    """

    row: Row
    layer: int | None
    expert: int | None
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    """Of the Hugging Face tensors."""
    prediction: int | None = None
    """Which layer of multi-token prediction it is in, from 0; None for the model's own."""

    def place(self, key: str) -> tuple[str, int | None]:
        """The key in checkpoints, and the layer (from 1) where the key is of a stack of layers."""
        if self.prediction is None:
            return key, self.layer
        own = f"{_PREDICTION}{self.prediction}."
        key = key.replace(_LAYERS, f"{own}transformer_layer.", 1)
        return (key if key.startswith(own) else key.replace(_PREDICTION, own, 1)), None

    def megatron_shape(self, arch: Architecture) -> tuple[int, ...]:
        """Of Megatron's tensor of this layer and expert."""
        parts = [torch.empty(shape, device="meta") for shape in self.shapes]
        return tuple(self.row.join.to_megatron(parts, arch).shape)

    @property
    def where(self) -> str:
        """For messages."""
        layer = "" if self.layer is None else f" of layer {self.layer}"
        return self.row.megatron[0] + layer + ("" if self.expert is None else f", expert {self.expert}")


_LAYERS, _PREDICTION = "decoder.layers.", "mtp.layers."


def _unit(row: Row, arch: Architecture, layer: int | None, expert: int | None) -> Unit:
    dims = arch.dims()
    place = {"l": None if layer is None else layer - 1, "e": expert}
    names = tuple(name.format(**place) for name, _ in row.hf)
    shapes = tuple(tuple(dims[size] for size in sizes.split()) for _, sizes in row.hf)
    prediction = None if layer is None or layer <= arch.layers else layer - arch.layers - 1
    return Unit(row, layer, expert, names, shapes, prediction)


def _of_layer(row: Row, arch: Architecture, layer: int) -> Iterator[Unit]:
    if not row.per_expert:
        yield _unit(row, arch, layer, None)
    elif arch.experts is not None:
        for expert in range(arch.experts.count):
            yield _unit(row, arch, layer, expert)


def units(rows: Sequence[Row], arch: Architecture) -> Iterator[Unit]:
    """Everything to convert, in the order of the model: rows before the layers, layer by layer, rows behind them.

    Layers of multi-token prediction follow the model's own.
    """
    first = next(index for index, row in enumerate(rows) if row.per_layer)
    for row in rows[:first]:
        yield _unit(row, arch, None, None)
    for layer in range(1, arch.layers + arch.predicted + 1):
        for row in rows:
            if row.per_layer and row.when(arch, layer):
                yield from _of_layer(row, arch, layer)
    for row in rows[first:]:
        if not row.per_layer and row.when(arch, 0):
            yield _unit(row, arch, None, None)
