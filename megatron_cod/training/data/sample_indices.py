"""Megatron's GPT dataset, whose order of samples on disk is bound to what the dataset holds.

Megatron keeps the order (document, sample and shuffle index) in ``PREFIX/cache`` or ``--data-cache-path`` under a key of
paths and numbers. A dataset that was made again under the same prefix has the same key: the run would read it in the order,
and to the length, of the one before. Here the key has the digest of ``.idx`` too; blends take it over.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.datasets.gpt_dataset import GPTDataset

from megatron_cod.data.datasets.content import index_digest
from megatron_cod.errors import UserError, one_line

_INDICES = ("document_index", "sample_index", "shuffle_index")


class ContentDataset(GPTDataset):
    """A GPT dataset that finds its indices by what it holds."""

    def _build_document_sample_shuffle_indices(self) -> Any:
        self.unique_identifiers["content"] = index_digest(self.dataset.path_prefix)
        self.unique_description = json.dumps(
            self.unique_identifiers, indent=4, default=lambda one: one.unique_identifiers
        )
        self.unique_description_hash = hashlib.md5(
            self.unique_description.encode("utf-8"), usedforsecurity=False
        ).hexdigest()
        folder = self._folder()
        try:
            if _is_first_rank():
                self._remove_unfinished(folder)
            return super()._build_document_sample_shuffle_indices()
        except OSError as error:
            raise UserError(
                f"the order of samples of {self.dataset.path_prefix} cannot be kept in {folder}: {one_line(error)}; "
                "--data-cache-path names a folder that can be written"
            ) from error

    def _folder(self) -> Path:
        own = Path(self.dataset.path_prefix) / "cache" / f"{type(self).__name__}_indices"
        return Path(self.config.path_to_cache) if self.config.path_to_cache is not None else own

    def _remove_unfinished(self, folder: Path) -> None:
        """Remove indices that a killed run was writing: Megatron takes a file that exists for one that is whole."""
        base = f"{self.unique_description_hash}-{type(self).__name__}-{self.index_split.name}"
        paths = [folder / f"{base}-{name}.npy" for name in _INDICES]
        for path in paths:
            if path.is_file() and not _is_whole(path):
                path.unlink()


def remove_unfinished_blends(folder: str | None) -> None:
    """Remove a blend's indices in ``--data-cache-path`` that a killed run was writing. Call before building."""
    if not _is_first_rank():
        return
    for path in Path(folder).glob("*-BlendedDataset-*_index.npy") if folder else ():
        if not _is_whole(path):
            path.unlink()


def _is_first_rank() -> bool:
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def _is_whole(path: Path) -> bool:
    try:
        np.load(path, mmap_mode="r")
    except (ValueError, EOFError):
        return False
    return True
