"""Rows of samples as the loader hands them to training."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from megatron_cod.data.chat.packing import Plan
from megatron_cod.data.chat.samples import Samples


def filled(samples: Samples, row: Any, size: int, padding: int) -> dict[str, Tensor]:
    """One row, [size] each: tokens, labels, loss_mask, position_ids.

    Each sample's labels are its own tokens, one further. Positions begin at 0 with each sample and with the padding behind
    the last one: so a 0 is where a sample begins, which is all that attention needs to know.
    """
    tokens, labels = np.full(size, padding, np.int64), np.zeros(size, np.int64)
    mask, positions = np.zeros(size, np.float32), np.zeros(size, np.int64)
    place = 0
    for number in row:
        ids, trained = samples[number]
        part = slice(place, place + len(ids) - 1)
        tokens[part], labels[part], mask[part] = ids[:-1], ids[1:], trained[1:]
        positions[part] = np.arange(len(ids) - 1)
        place = part.stop
    positions[place:] = np.arange(size - place)
    found = {"tokens": tokens, "labels": labels, "loss_mask": mask, "position_ids": positions}
    return {name: torch.from_numpy(values) for name, values in found.items()}


class Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """A dataset of Megatron's loop: ``count`` rows, each made on request."""

    def __init__(self, samples: Samples, plan: Plan, count: int, size: int, padding: int, split: Any) -> None:
        """split: Megatron's ``Split``, by which its loader recognises validation."""
        self._samples, self._plan, self._count = samples, plan, count
        self._size, self._padding, self.split = size, padding, split

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return filled(self._samples, self._plan(index), self._size, self._padding)
