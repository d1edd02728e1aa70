"""Weights published in fp8, with a scale for each block: which scale belongs to a weight, and their product in fp32.

DeepSeek-V3 publishes its weights so (README_WEIGHTS.md of its repository): ``X.weight`` in float8_e4m3fn and
``X.weight_scale_inv``, which multiplies a block of 128 x 128 elements. The last blocks of a row or column may be smaller.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from megatron_cod.common.lists import listed
from megatron_cod.errors import UserError

FP8 = torch.float8_e4m3fn
SCALE = "_scale_inv"
"""Behind the name of a weight: its scales."""
_MOST = 3

Blocks = tuple[int, int]
"""Rows and columns that have one scale."""


def blocks_in(shape: tuple[int, ...], blocks: Blocks) -> tuple[int, ...]:
    """The shape of the scales of a weight [rows, columns]."""
    return tuple(-(-size // block) for size, block in zip(shape, blocks, strict=True))


def scales_of(
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, torch.dtype | None],
    blocks: Blocks,
    plain: frozenset[torch.dtype],
) -> dict[str, str]:
    """The name of each weight in fp8 -> that of its scales. UserError for scales that are missing or do not fit."""
    weights = sorted(name for name, dtype in dtypes.items() if dtype == FP8)
    missing = [name for name in weights if name + SCALE not in shapes]
    if missing:
        raise UserError(f"weights in fp8 without scales (NAME{SCALE}): {listed(missing, _MOST)}")
    for name in weights:
        scale, shape = name + SCALE, shapes[name]
        if len(shape) != 2:
            raise UserError(f"{name} is {list(shape)} in fp8; only matrices have blocks")
        if shapes[scale] != blocks_in(shape, blocks):
            raise UserError(
                f"{scale} is {list(shapes[scale])}; {name} of {list(shape)} has {list(blocks_in(shape, blocks))} blocks "
                f"of {blocks[0]} x {blocks[1]}"
            )
        if dtypes[scale] not in plain:
            raise UserError(f"{scale} does not hold plain floating-point numbers")
    return {name: name + SCALE for name in weights}


def dequantised(weight: Tensor, scales: Tensor, blocks: Blocks) -> Tensor:
    """The weight [rows, columns] in fp32: each element times the scale of its block, rounded once.

    Beside the result only one row of scales is in memory.
    """
    rows, columns = blocks
    found = weight.float()
    for number, row in enumerate(scales.float()):
        found[number * rows : (number + 1) * rows] *= row.repeat_interleave(columns)[: found.shape[1]]
    return found
