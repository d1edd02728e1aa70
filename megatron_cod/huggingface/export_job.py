"""The job of an export, and the exported model."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_cod.huggingface.families.architecture import Architecture
from megatron_cod.huggingface.folding import Folding
from megatron_cod.huggingface.safetensors_writer import Parcel

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class ExportJob:
    """The options of an export."""

    checkpoint: Path
    output: Path
    step: int | None = None
    dtype: str | None = None
    """Of ``DTYPES``; None keeps each tensor's own."""
    fold: bool = True
    family: str | None = None
    vocab: int | None = None
    like: Path | None = None
    """A Hugging Face directory whose tokenizer, generation files and further config keys are taken over."""
    shard_bytes: int = 5_000_000_000
    license: str | None = None
    """Identifier of a licence, for the model card."""
    base_model: str | None = None
    """Name on the hub of the model that training started from, for the model card."""
    dry_run: bool = False
    """Check everything, write nothing."""
    verify: bool = True
    """Load what was written, and compare it with Megatron's own model where ``export_model`` is given that."""


@dataclass
class Exported:
    """A checkpoint as stock Hugging Face tensors, made one unit at a time."""

    arch: Architecture
    scheme: Folding
    folded: bool
    config: dict[str, Any]
    parcels: list[Parcel]
    originals: dict[str, Callable[[], Tensor]]
    """The norms before folding, by the name of the folded one."""
    args: Namespace
    notes: list[str] = field(default_factory=list)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of the whole model."""
        for parcel in self.parcels:
            yield from zip(parcel.names, parcel.make(), strict=True)
