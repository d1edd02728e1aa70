"""A Megatron checkpoint as a transformers model in memory, nothing written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from megatron_cod.huggingface.checkpoint import find_checkpoint
from megatron_cod.huggingface.export import exported


def load_as_transformers(
    checkpoint: Path, *, step: int | None = None, dtype: torch.dtype | None = torch.float32, family: str | None = None
) -> Any:
    """The checkpoint in ``checkpoint`` as a stock transformers model with the depth factors folded in, in eval mode.

    checkpoint: a run's directory or an ``iter_N`` in it. dtype: None keeps the checkpoint's. Raises UserError for what
    no stock architecture computes (see ``export.exported``).
    """
    import transformers

    found = exported(find_checkpoint(checkpoint, step), dtype=dtype, family=family)
    config = transformers.AutoConfig.for_model(**found.config)
    model_class = getattr(transformers, found.config["architectures"][0])
    model = model_class.from_pretrained(None, config=config, state_dict=dict(found.tensors()), dtype=dtype)
    return model.eval()
