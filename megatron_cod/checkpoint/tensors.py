"""Read a torch_dist checkpoint tensor by tensor, keyed by global layer, for any saved layout.

torch_dist keeps global tensors, cut into the pieces that the ranks held. The layers of a stack of equal layers are one
tensor with a leading layer axis, those of unequal layers one tensor each; both come out here under one name and the
1-based global layer. Memory: one piece of a file and ``CHUNK`` elements at a time, never a whole stack.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from megatron_cod.errors import UserError

CHUNK = 1 << 25
"""Elements read at once: 128 MB in fp32."""

WEIGHTS = "weights"
MASTER = "param"
_LAYER = re.compile(r"(?P<stack>(?:.*\.)?(?:decoder|encoder)\.layers\.)(?:(?P<index>\d+)\.)?(?P<rest>.+)")
_STATE = re.compile(r"optimizer\.state\.(?P<kind>[^.]+)\.(?P<weight>.+)")

Name = tuple[str, int | None]
"""A tensor's name without layer index, and its global layer (1-based), None for a tensor of no layer."""


@dataclass(frozen=True)
class Slice:
    """Where a checkpoint keeps one tensor of one layer."""

    key: str
    index: int | None
    """Along the leading layer axis; None where the key is this tensor alone."""
    shape: tuple[int, ...]
    """Without the layer axis."""
    dtype: torch.dtype


def kind_of(name: str) -> str:
    """``weights``, or which optimizer state: ``exp_avg``, ``exp_avg_sq``, ``param`` (the fp32 copy), ``optimizer``."""
    state = _STATE.fullmatch(name)
    if state:
        return state["kind"]
    return "optimizer" if name.startswith("optimizer.") else WEIGHTS


def weight_of(name: str) -> str:
    """The name of the weight that an optimizer state belongs to; a weight's own name."""
    state = _STATE.fullmatch(name)
    return state["weight"] if state else name


def finished_checkpoints(run: Path) -> dict[int, Path]:
    """Step -> checkpoint directory of a run, ascending; only those that were written to the end."""
    found = {}
    for folder in run.glob("iter_*"):
        number = folder.name.removeprefix("iter_")
        if number.isdigit() and is_checkpoint(folder):
            found[int(number)] = folder
    return dict(sorted(found.items()))


def is_checkpoint(folder: Path) -> bool:
    """Whether this is a directory of a finished torch_dist checkpoint."""
    return (folder / ".metadata").is_file() and (folder / "metadata.json").is_file()


def damaged_file(folder: Path, stored: Mapping[Any, Any]) -> str | None:
    """The first file that a torch_dist index (``storage_data``) names and that is missing or too short, and how."""
    needed: dict[str, int] = {}
    for piece in stored.values():
        needed[piece.relative_path] = max(needed.get(piece.relative_path, 0), piece.offset + piece.length)
    for name, size in sorted(needed.items()):
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        if found is None or found < size:
            return f"{name} is missing" if found is None else f"{name} has {found} bytes of {size}"
    return None


class _ReadInto(DefaultLoadPlanner):
    """What torch's reader asks while it reads: where a piece goes."""

    def __init__(self, target: torch.Tensor) -> None:
        super().__init__()
        self._target = target

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        place = self._target
        for dim, (start, length) in enumerate(zip(read_item.dest_offsets, read_item.lengths, strict=True)):
            place = place.narrow(dim, start, length)
        return place


class Checkpoint:
    """A torch_dist checkpoint opened for reading. UserError when it is damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader = FileSystemReader(path)
        try:
            self._metadata = self._reader.read_metadata()
            self._reader.set_up_storage_reader(self._metadata, is_coordinator=True)
        except Exception as error:  # a damaged index may raise anything
            raise self._corrupt(f".metadata cannot be read ({error})") from None
        self._check_files()
        self.slices: dict[Name, Slice] = {}
        for key, stored in self._metadata.state_dict_metadata.items():
            if isinstance(stored, TensorStorageMetadata):
                self.slices |= dict(_slices(key, tuple(stored.size), stored.properties.dtype))

    def _corrupt(self, what: str) -> UserError:
        return UserError(f"checkpoint {self.path} is corrupt: {what}"[:400])

    def _check_files(self) -> None:
        """A file that is missing or short is found now, not after an hour of reading."""
        damage = damaged_file(self.path, self._metadata.storage_data or {})
        if damage:
            raise self._corrupt(damage)

    def whole_shape(self, key: str) -> tuple[int, ...]:
        """The shape under which a key is stored, with the axis of layers where it has one."""
        stored = self._metadata.state_dict_metadata[key]
        assert isinstance(stored, TensorStorageMetadata)
        return tuple(stored.size)

    def extra_states(self) -> list[str]:
        """Keys of the states beside linear layers, which Megatron does not load without."""
        return [key for key in self._metadata.state_dict_metadata if "._extra_state/shard_" in key]

    def has_optimizer(self) -> bool:
        """Whether it holds any optimizer state."""
        return any(kind_of(name) != WEIGHTS for name, _ in self.slices)

    def read(self, part: Slice, start: int, stop: int) -> torch.Tensor:
        """Rows start..stop of one tensor along its first axis (a tensor without axes is one row), on the CPU."""
        box = [(start, stop - start), *((0, size) for size in part.shape[1:])] if part.shape else []
        if part.index is not None:
            box.insert(0, (part.index, 1))
        sizes = torch.Size([size for _, size in box])
        chunk = ChunkStorageMetadata(offsets=torch.Size([offset for offset, _ in box]), sizes=sizes)
        items = create_read_items_for_chunk_list(part.key, self._metadata.state_dict_metadata[part.key], [chunk])
        if sum(math.prod(item.lengths) for item in items) != math.prod(sizes):
            raise self._corrupt(f"it does not hold all of {part.key}")
        values = torch.empty(sizes, dtype=part.dtype)
        try:
            self._reader.read_data(LoadPlan(items), _ReadInto(values)).wait()
        except Exception as error:
            raise self._corrupt(f"{part.key} cannot be read ({error})") from None
        return values if part.index is None else values.squeeze(0)

    def common_state(self) -> dict[str, Any]:
        """What is not a tensor: ``args``, ``iteration``, the optimizer's step. Read by Megatron."""
        from megatron.core import dist_checkpointing

        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="torch.distributed is disabled")
                return dist_checkpointing.load_common_state_dict(str(self.path))
        except CheckpointException as error:  # its text is a traceback for each rank
            causes = [str(cause) for cause, _ in error.failures.values()]
            raise self._corrupt(f"its common state cannot be read ({', '.join(causes)})") from None
        except Exception as error:
            raise self._corrupt(f"its common state cannot be read ({error})") from None


def pieces(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Cut a tensor along its first axis into (start, stop) of at most ``CHUNK`` elements, at least one row."""
    rows = shape[0] if shape else 1
    step = max(1, CHUNK // max(1, math.prod(shape[1:])))
    for start in range(0, rows, step):
        yield start, min(rows, start + step)


def _slices(key: str, shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[tuple[Name, Slice]]:
    # Megatron calls the fp32 copy fp32_param without, and param with, the distributed optimizer.
    name = key.replace("optimizer.state.fp32_param.", f"optimizer.state.{MASTER}.", 1)
    layer = _LAYER.fullmatch(name)
    if layer is None:
        yield (name, None), Slice(key, None, shape, dtype)
    elif layer["index"] is not None:
        yield (layer["stack"] + layer["rest"], int(layer["index"]) + 1), Slice(key, None, shape, dtype)
    else:
        for index in range(shape[0]):
            yield (name, index + 1), Slice(key, index, shape[1:], dtype)
