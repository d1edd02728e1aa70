"""Writing sharded safetensors, one tensor in memory at a time; a shard that is whole is not written again.

The format is a length, a JSON header with every tensor's place, and the raw bytes: so the header can be written before
any tensor is made. (safetensors' own writer takes all tensors of a file at once.)
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch import Tensor

from megatron_cod.huggingface.atomic_directory import PartialDirectory

_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Parcel:
    """Tensors that are made together."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    make: Callable[[], list[Tensor]]
    exact: Callable[[], list[Tensor]]
    """The same in fp32, before they are rounded."""

    @property
    def bytes(self) -> int:
        sizes = zip(self.shapes, self.dtypes, strict=True)
        return sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in sizes)


def _header(shard: Sequence[Parcel]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for parcel in shard:
        for name, shape, dtype in zip(parcel.names, parcel.shapes, parcel.dtypes, strict=True):
            end = at + torch.Size(shape).numel() * dtype.itemsize
            header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [at, end]}
            at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the bytes of tensors start at a multiple of 8
    return struct.pack("<Q", len(text)) + text


def _write(file: BinaryIO, parcel: Parcel, wrote: Callable[[int], None]) -> None:
    made = parcel.make()
    for tensor, shape, dtype in zip(made, parcel.shapes, parcel.dtypes, strict=True):
        assert tuple(tensor.shape) == shape and tensor.dtype == dtype, (parcel.names, tensor.shape, tensor.dtype)
        flat = tensor.contiguous().flatten().view(torch.uint8)
        file.write(memoryview(flat.numpy()))
        wrote(flat.numel())


def write_shards(
    part: PartialDirectory,
    planned: Sequence[Sequence[Parcel]],
    wrote: Callable[[int], None],
    skip: Callable[[int], None],
) -> None:
    """Write the shards and their index into ``part``; one shard is named ``model.safetensors`` and has no index."""
    count, total = len(planned), 0
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(planned, 1):
        name = shard_name(number, count)
        size = sum(parcel.bytes for parcel in shard)
        total += size
        weight_map |= {tensor: name for parcel in shard for tensor in parcel.names}
        if part.done(name) is not None:
            skip(size)
            continue
        with (part.folder / name).open("wb") as file:
            file.write(_header(shard))
            for parcel in shard:
                _write(file, parcel, wrote)
        part.mark(name, True)
    if count > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (part.folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def shard_name(number: int, count: int) -> str:
    """As transformers names them."""
    return "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def missing_bytes(part: PartialDirectory, planned: Sequence[Sequence[Parcel]]) -> int:
    """How much is still to be written."""
    names = [shard_name(number, len(planned)) for number in range(1, len(planned) + 1)]
    left = [shard for name, shard in zip(names, planned, strict=True) if part.done(name) is None]
    return sum(parcel.bytes for shard in left for parcel in shard)
