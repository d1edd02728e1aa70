"""Merge checkpoints of one run into one: a weighted average of the weights, in place of a decay of the learning rate.

An average of the last checkpoints of a run at a constant rate does what a decay would have done with the gradients between
them (WSM, arXiv 2507.17634): the weights of the members are the differences of the decay's curve. Tensors are read and
written piece by piece, at whatever layouts the members were saved, and read back before the result has its name; it is
loaded as an imported model is.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_cod import __version__
from megatron_cod.checkpoint.directory import RELEASE, TRACKER
from megatron_cod.checkpoint.function_record import differences
from megatron_cod.checkpoint.readme import write_readme
from megatron_cod.checkpoint.scheme_record import recorded_identity
from megatron_cod.checkpoint.tensors import (
    MASTER,
    WEIGHTS,
    Checkpoint,
    Name,
    Slice,
    finished_checkpoints,
    kind_of,
    pieces,
)
from megatron_cod.checkpoint.writer import CheckpointWriter, Piece
from megatron_cod.common.lists import groups_of_bytes
from megatron_cod.common.progress import progress_of_bytes
from megatron_cod.errors import UserError
from megatron_cod.huggingface.atomic_directory import PartialDirectory
from megatron_cod.schemes.table import SCHEMES

METHODS = ("equal", "linear", "minus-sqrt", "ema")
RESOLVED = "resolved_args.yaml"
_COUNTERS = ("iteration", "consumed_train_samples", "consumed_valid_samples", "skipped_train_samples")


@dataclass(frozen=True)
class MergeJob:
    """What to merge."""

    members: tuple[Path, ...]
    """Checkpoints (``iter_N``) of a run, the oldest first."""
    output: Path
    method: str = "equal"
    """Of ``METHODS``."""
    ema_decay: float = 0.8
    file_bytes: int = 512 << 20


def weights_of(method: str, count: int, ema_decay: float = 0.8) -> list[float]:
    """The members' weights, the oldest first; they sum to 1.

    equal: a mean, as after a linear decay. linear: 1, 2, ... n. minus-sqrt: as after a decay by 1 - sqrt(t), whose
    differences they are. ema: each older member counts ``ema_decay`` times the next.
    """
    if method == "equal":
        parts = [1.0] * count
    elif method == "linear":
        parts = [float(number + 1) for number in range(count)]
    elif method == "minus-sqrt":
        parts = [math.sqrt((number + 1) / count) - math.sqrt(number / count) for number in range(count)]
    else:
        parts = [ema_decay ** (count - 1 - number) for number in range(count)]
    whole = math.fsum(parts)
    return [part / whole for part in parts]


def members_of(run: Path, last: int | None, steps: Sequence[int] | None) -> tuple[Path, ...]:
    """The newest ``last`` finished checkpoints of a run, or those of ``steps``. UserError where they are not there."""
    if not run.is_dir():
        raise UserError(f"{run} does not exist")
    found = finished_checkpoints(run)
    if steps:
        missing = [step for step in steps if step not in found]
        if missing:
            raise UserError(f"{run} has no finished checkpoint of step {missing[0]}; there are {_listed(found)}")
        return tuple(found[step] for step in sorted(set(steps)))
    count = len(found) if last is None else last
    if count > len(found):
        raise UserError(f"{run} has {len(found)} finished checkpoints, not {count}: {_listed(found)}")
    return tuple(found.values())[len(found) - count :]


def _listed(found: dict[int, Path]) -> str:
    return ", ".join(map(str, found)) or "none"


class _Members:
    """The open checkpoints, which hold the same weights of the same function."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.all = [Checkpoint(path) for path in paths]
        states = [one.common_state().get("args") for one in self.all]
        for path, state in zip(paths, states, strict=True):
            if state is None:
                raise UserError(f"checkpoint {path} records no arguments: what model it is cannot be known")
        self.args: argparse.Namespace = states[-1]  # type: ignore[assignment]
        for path, state in zip(paths, states, strict=True):
            self._check(path, state, paths[-1])

    @property
    def newest(self) -> Checkpoint:
        return self.all[-1]

    def _check(self, path: Path, state: Any, newest: Path) -> None:
        ours, theirs = recorded_identity(self.args), recorded_identity(state)
        if ours["norm_scheme"] not in SCHEMES:
            raise UserError(
                f"{newest} was trained with --norm-scheme {ours['norm_scheme']}, which is not known here, nor its options: "
                "give --import MODULE"
            )
        differ = [f"{name} {theirs.get(name)} and {ours.get(name)}" for name in ours if theirs.get(name) != ours[name]]
        differ += [one.between("and ") for one in differences(state, self.args)]
        if differ:
            raise UserError(
                f"{path} and {newest} compute different functions and are not merged: {', '.join(differ[:3])}"
            )

    def weights(self) -> dict[Name, list[Slice]]:
        """Where each member keeps each tensor of the model: its fp32 copy in the optimizer, where all have one.

        Raises:
            UserError: where the members do not hold the same tensors.
        """
        names = [{name for name in one.slices if kind_of(name[0]) == WEIGHTS} for one in self.all]
        for one, held in zip(self.all, names, strict=True):
            if held != names[-1]:
                wrong = sorted(f"{name} of layer {layer}" for name, layer in held ^ names[-1])
                raise UserError(f"{one.path} and {self.newest.path} hold different tensors: {wrong[0]}")
        return {name: self._places(name) for name in sorted(names[-1], key=lambda one: (one[1] or 0, one[0]))}

    def _places(self, name: Name) -> list[Slice]:
        own = [one.slices[name] for one in self.all]
        if any(part.shape != own[-1].shape for part in own):
            raise UserError(
                f"{name[0]} has the shapes {[list(part.shape) for part in own]}: these are different models"
            )
        master: Name = (f"optimizer.state.{MASTER}.{name[0]}", name[1])
        copies = [one.slices.get(master) for one in self.all]
        whole = [part for part in copies if part is not None and part.shape == own[-1].shape]
        return whole if len(whole) == len(own) else own

    def mean(self, places: Sequence[Slice], weights: Sequence[float], start: int, stop: int) -> Tensor:
        """Rows of one tensor, averaged in fp64; of one that is no number of a gradient, the newest's."""
        if not places[-1].dtype.is_floating_point:
            return self.newest.read(places[-1], start, stop)
        total: Tensor | None = None
        for one, place, weight in zip(self.all, places, weights, strict=True):
            part = one.read(place, start, stop).double() * weight
            total = part if total is None else total.add_(part)
        assert total is not None
        return total


def _sum_of(value: Tensor) -> int:
    """A checksum of a tensor's bytes."""
    return zlib.crc32(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)


class _Sums(dict[tuple[Name, int], int]):
    """Tensor and first row of a piece -> the checksum of what was handed to the writer."""

    def of(self, name: Name, start: int, dtype: torch.dtype, make: Callable[[], Tensor]) -> Tensor:
        value = make().to(dtype)
        self[name, start] = _sum_of(value)
        return value


def _read_back(folder: Path, members: _Members, sums: _Sums) -> None:
    """Open the written checkpoint and read all of it. UserError where it is not what was averaged."""
    written, expected = Checkpoint(folder), members.weights()
    if set(written.slices) != set(expected):
        wrong = sorted(f"{name} of layer {layer}" for name, layer in set(written.slices) ^ set(expected))
        raise UserError(f"{folder} does not read back as it was written: {wrong[0]}")
    for name, part in written.slices.items():
        for start, stop in pieces(part.shape):
            if sums.get((name, start)) != _sum_of(written.read(part, start, stop)):
                raise UserError(f"{folder} does not read back as it was written: {name[0]} of layer {name[1]}")
    found = differences(written.common_state()["args"], members.args)
    if found:
        raise UserError(f"{folder} does not read back as it was written: {found[0].between('not ')}")


def _pieces_of(members: _Members, weights: Sequence[float], sums: _Sums) -> list[Piece]:
    found = []
    for name, places in members.weights().items():
        stored = members.newest.slices[name]
        layers = members.newest.whole_shape(stored.key)[0] if stored.index is not None else None
        for start, stop in pieces(stored.shape):
            mean = partial(members.mean, places, weights, start, stop)
            make = partial(sums.of, name, start, stored.dtype, mean)
            shape = (stop - start, *stored.shape[1:]) if stored.shape else ()
            offsets = (start, *(0 for _ in stored.shape[1:])) if stored.shape else ()
            whole = stored.shape
            if layers is not None and stored.index is not None:
                offsets, shape, whole = (stored.index, *offsets), (1, *shape), (layers, *whole)
            found.append(Piece(stored.key, offsets, shape, whole, stored.dtype, -1, make))
    return found


def _args_of(members: _Members) -> argparse.Namespace:
    """Those of the newest, as at the start of a run."""
    args = copy.copy(members.args)
    for name in _COUNTERS:
        setattr(args, name, 0)
    return args


def merge(job: MergeJob, log: Callable[[str], None] = lambda _: None) -> dict[Path, float]:
    """Write ``job.output``, which ``--load`` and ``megatron-cod convert`` read; the members' weights.

    Raises UserError, and leaves nothing under that name, for members that are not of one model.
    """
    if len(job.members) < 2:
        raise UserError(f"{len(job.members)} checkpoints: at least two are merged")
    if not 0 < job.ema_decay <= 1:
        raise UserError(f"--ema-decay {job.ema_decay} must be above 0 and at most 1")
    weights = weights_of(job.method, len(job.members), job.ema_decay)
    members = _Members(job.members)
    sums = _Sums()
    parcels = groups_of_bytes(_pieces_of(members, weights, sums), job.file_bytes)
    shares = dict(zip(job.members, weights, strict=True))
    part = PartialDirectory(job.output, {"merged at": str(job.output)})
    try:
        part.check_space(sum(piece.bytes for parcel in parcels for piece in parcel))
        progress = progress_of_bytes(sum(piece.bytes for parcel in parcels for piece in parcel))
        try:
            writer = CheckpointWriter(part.folder / RELEASE, progress.add)
            for number, parcel in enumerate(parcels):
                writer.write(number, parcel)
            writer.finish(len(parcels), _args_of(members), members.newest.extra_states())
        finally:
            progress.close()
        _write_companions(part.folder, job, shares, members)
        _read_back(part.folder / RELEASE, members, sums)
    except BaseException:
        part.discard()
        raise
    part.finish()
    for path, weight in shares.items():
        log(f"{weight:.4f}  {path}")
    return shares


def _write_companions(folder: Path, job: MergeJob, shares: dict[Path, float], members: _Members) -> None:
    record = {
        "method": job.method,
        "members": {str(path): weight for path, weight in shares.items()},
        "dtype": str(next(iter(members.newest.slices.values())).dtype).removeprefix("torch."),
        "version": __version__,
        "torch": torch.__version__,
    }
    (folder / "merged.json").write_text(json.dumps(record, indent=1) + "\n")
    resolved = job.members[-1].parent / RESOLVED
    if resolved.is_file():
        (folder / RESOLVED).write_text(resolved.read_text())
    write_readme(folder, members.args.norm_scheme, __version__)
    (folder / TRACKER).write_text(RELEASE)
