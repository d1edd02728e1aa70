"""Writing a Megatron checkpoint (torch_dist) tensor by tensor, without a model and without a process group.

torch's own file writer does the writing, a file for a few hundred megabytes of tensors. It asks for each tensor when it
is about to write it, so that one is in memory at a time.
"""

from __future__ import annotations

import io
import json
import re
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter
from torch.distributed.checkpoint.filesystem import _StorageInfo, _StoragePrefix
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult

_COMMON = "common_state/shard_0_1"
# Megatron's linear layers each have a state of fp8 recipes, which is empty here, and do not load without.
_LINEAR = re.compile(r"((?:decoder|mtp)\.layers\..*\.(?:linear_\w+|eh_proj))\.weight")


@dataclass(frozen=True)
class Piece:
    """One tensor to write, as a part of a global one: a layer of a stack, an expert of a layer."""

    key: str
    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    """Of this piece, with leading ones for the axes of layer and expert."""
    whole: tuple[int, ...]
    dtype: torch.dtype
    lead: int
    """How many axes count layers and experts; -1: the states beside linear layers are named to ``finish``."""
    make: Callable[[], Tensor]
    """Called when the piece is written; gives any view of ``shape``."""

    @property
    def bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    @property
    def index(self) -> MetadataIndex:
        return MetadataIndex(self.key, torch.Size(self.offsets))

    @property
    def chunk(self) -> ChunkStorageMetadata:
        return ChunkStorageMetadata(torch.Size(self.offsets), torch.Size(self.shape))

    @property
    def extra_state(self) -> str | None:
        """The key of the empty state beside the weight of a linear layer; None for other tensors."""
        linear = _LINEAR.fullmatch(self.key)
        if linear is None or self.lead < 0:
            return None
        at, of = self.offsets[: self.lead] or (0,), self.whole[: self.lead] or (1,)
        return f"{linear[1]}._extra_state/shard_{'.'.join(map(str, at))}_{'.'.join(map(str, of))}"

    def item(self) -> WriteItem:
        data = TensorWriteData(self.chunk, TensorProperties(self.dtype), torch.Size(self.whole))
        return WriteItem(self.index, WriteItemType.SHARD, tensor_data=data)


class _Resolve(DefaultSavePlanner):
    """What torch's writer asks while it writes: the data of an item."""

    def __init__(self, pieces: Sequence[Piece], states: dict[str, Any], wrote: Callable[[int], None]) -> None:
        super().__init__()
        self._pieces = {piece.index: piece for piece in pieces}
        self._states, self._wrote = states, wrote

    def resolve_data(self, write_item: WriteItem) -> Tensor | io.BytesIO:
        if write_item.type == WriteItemType.BYTE_IO:
            # As Megatron's serialisation puts it: a list of the objects of one shard.
            stream = io.BytesIO()
            torch.save([self._states[write_item.index.fqn]], stream)
            return stream
        piece = self._pieces[write_item.index]
        made = piece.make().reshape(piece.shape).to(piece.dtype).contiguous()
        self._wrote(piece.bytes)
        return made


class CheckpointWriter:
    """One torch_dist checkpoint directory, written file by file. The index is written last, by ``finish``."""

    def __init__(self, folder: Path, wrote: Callable[[int], None]) -> None:
        folder.mkdir(exist_ok=True)
        self._folder, self._wrote = folder, wrote
        self._results: list[WriteResult] = []
        self._pieces: list[Piece] = []

    @staticmethod
    def file_of(number: int) -> str:
        """The name of the file that group ``number`` goes to."""
        return f"__{number}_0.distcp"

    def write(self, number: int, pieces: Sequence[Piece]) -> list[list[Any]]:
        """Write one file; returns its index as plain JSON, for ``resume``."""
        plan = SavePlan([piece.item() for piece in pieces], storage_data=_StoragePrefix(f"__{number}_"))
        results = self._write(plan, _Resolve(pieces, {}, self._wrote))
        self._add(pieces, results)
        return [
            [r.index.fqn, list(r.index.offset or ()), r.storage_data.offset, r.storage_data.length] for r in results
        ]

    def resume(self, number: int, pieces: Sequence[Piece], index: list[list[Any]]) -> None:
        """Take a file that an interrupted conversion has written."""
        results = [
            WriteResult(MetadataIndex(key, torch.Size(at)), length, _StorageInfo(self.file_of(number), start, length))
            for key, at, start, length in index
        ]
        self._add(pieces, results)

    def _write(self, plan: SavePlan, planner: _Resolve) -> list[WriteResult]:
        # Torch's writer is one of checkpoints of one process: one file, no threads.
        writer = FileSystemWriter(self._folder, single_file_per_rank=True, thread_count=1)
        return writer.write_data(plan, planner).value()

    def _add(self, pieces: Sequence[Piece], results: list[WriteResult]) -> None:
        assert {result.index for result in results} == {piece.index for piece in pieces}
        self._pieces += [replace(piece, make=_written) for piece in pieces]
        self._results += results

    def finish(self, number: int, args: Namespace, extra_states: Sequence[str] = ()) -> None:
        """Write the state that is no tensor (file ``number``), the index, and what marks the directory complete.

        extra_states: keys of empty states, beside those of the pieces.
        """
        states: dict[str, Any] = {piece.extra_state: None for piece in self._pieces if piece.extra_state}
        states |= dict.fromkeys(extra_states)
        states[_COMMON] = {"args": args, "checkpoint_version": 3.0, "iteration": 0, "content_metadata": {}}
        items = [WriteItem(MetadataIndex(key), WriteItemType.BYTE_IO) for key in states]
        results = self._write(SavePlan(items, storage_data=_StoragePrefix(f"__{number}_")), _Resolve([], states, _none))
        index: dict[str, Any] = {key: BytesStorageMetadata() for key in states}
        for piece in self._pieces:
            held = index.setdefault(
                piece.key, TensorStorageMetadata(TensorProperties(piece.dtype), torch.Size(piece.whole), [])
            )
            held.chunks.append(piece.chunk)
        writer = FileSystemWriter(self._folder)
        writer.finish(Metadata(index), [self._results, results])
        (self._folder / "metadata.json").write_text(
            json.dumps({"sharded_backend": "torch_dist", "sharded_backend_version": 1})
        )


def _written() -> Tensor:
    raise AssertionError("this piece is on disk already")


def _none(_bytes: int) -> None:
    """States are no progress."""
