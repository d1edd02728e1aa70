"""A Megatron checkpoint for the converter: found, opened, read unit by unit, at any saved layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_cod.checkpoint.directory import iteration_name, latest_checkpoint
from megatron_cod.checkpoint.tensors import WEIGHTS, Checkpoint, Slice, is_checkpoint, kind_of
from megatron_cod.common.lists import listed
from megatron_cod.errors import UserError
from megatron_cod.huggingface.families.architecture import Architecture
from megatron_cod.huggingface.families.mapping_rows import Unit
from megatron_cod.huggingface.folding import learned_names


def find_checkpoint(folder: Path, step: int | None = None) -> Path:
    """The checkpoint in ``folder``: itself, or the one its tracker names, or that of ``step``. UserError without one."""
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist")
    if is_checkpoint(folder):
        return folder
    found = folder / iteration_name(step) if step is not None else latest_checkpoint(folder)
    if found is None:
        raise UserError(f"{folder} holds no finished Megatron checkpoint (no latest_checkpointed_iteration.txt)")
    if not is_checkpoint(found):
        raise UserError(f"{found} is no finished checkpoint in the torch_dist format")
    return found


class MegatronCheckpoint:
    """Weights by unit, arguments, iteration. UserError when it is damaged or records no arguments."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened = Checkpoint(path)
        state = self._opened.common_state()
        self.args: Any = state.get("args")
        if self.args is None:
            raise UserError(f"checkpoint {path} records no arguments: what model it is cannot be known")
        self.iteration = int(state.get("iteration") or 0)

    def _slice(self, unit: Unit) -> Slice:
        for key in unit.row.megatron:
            found = self._opened.slices.get(unit.place(key))
            if found is not None:
                return found
        raise KeyError(unit.where)

    def dtype(self, unit: Unit) -> torch.dtype:
        """Of the unit's tensor as it is stored; of one that is not stored, as most of the model is."""
        try:
            return self._slice(unit).dtype
        except KeyError:
            return getattr(self.args, "params_dtype", torch.float32)

    def shared(self, keys: Sequence[str]) -> dict[str, Tensor]:
        """The tensors that all layers share. UserError for a missing one."""
        missing = [key for key in keys if (key, None) not in self._opened.slices]
        if missing:
            raise UserError(f"checkpoint {self.path} has no {missing[0]}")
        parts = {key: self._opened.slices[key, None] for key in keys}
        return {key: self._opened.read(part, 0, part.shape[0]) for key, part in parts.items()}

    def check(
        self,
        wanted: list[Unit],
        arch: Architecture,
        made: Callable[[Unit], bool] = lambda _: False,
        shared: Sequence[str] = (),
    ) -> list[str]:
        """Notes on what is omitted. UserError that names every missing, unexpected or misshapen tensor.

        made: whether a unit is not stored but made of the tensors ``shared``.
        """
        used: set[tuple[str, int | None]] = set()
        faults = []
        for unit in wanted:
            used |= {unit.place(key) for key in unit.row.megatron}
            try:
                shape = self._slice(unit).shape
            except KeyError:
                if made(unit):
                    continue
                faults.append(f"{unit.where} is missing")
                continue
            shape = shape[1:] if unit.expert is not None else shape
            expected = unit.megatron_shape(arch)
            if shape != expected:
                faults.append(f"{unit.where} is {list(shape)}, expected {list(expected)}")
        held = {name for name in self._opened.slices if kind_of(name[0]) == WEIGHTS and not _derived(name[0])}
        extra = sorted({name for name, _ in held - used})
        notes = []
        prediction = [name for name in extra if name.startswith("mtp.")]
        if prediction:
            notes.append(f"the multi-token-prediction layers ({len(prediction)} tensors) are omitted")
        unknown = [name for name in extra if name not in (*prediction, *shared) and not name.endswith(learned_names())]
        faults += [f"{name} has no place in the {arch.family} architecture" for name in unknown]
        if faults:
            raise UserError(f"checkpoint {self.path}: {listed(list(dict.fromkeys(faults)), 4)}")
        return notes

    def read(self, unit: Unit) -> Tensor:
        """The unit's tensor, of one layer and expert."""
        part = self._slice(unit)
        if unit.expert is not None:
            return self._opened.read(part, unit.expert, unit.expert + 1).squeeze(0)
        return self._opened.read(part, 0, part.shape[0] if part.shape else 1)

    def learned_scale(self, key: str, unit: Unit) -> Tensor:
        """The learned scale, [hidden] or [1], of the branch that the unit ends."""
        part = self._opened.slices.get(unit.place(key))
        if part is None:
            raise UserError(f"checkpoint {self.path} has no {key} for layer {unit.layer}")
        return self._opened.read(part, 0, part.shape[0])


def _derived(key: str) -> bool:
    """States of the run that are stored beside the weights, and no part of the function."""
    return key.startswith(("rng_state", "rerun_state", "common_state")) or "local_tokens_per_expert" in key
