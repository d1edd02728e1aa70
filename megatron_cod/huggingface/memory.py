"""A Megatron checkpoint as a transformers model in memory, nothing written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from megatron_cod.huggingface.checkpoint import find_checkpoint
from megatron_cod.huggingface.export import exported
from megatron_cod.huggingface.verification import check_whole


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
    state = dict(found.tensors())
    model, report = model_class.from_pretrained(
        None, config=config, state_dict=state, dtype=dtype, output_loading_info=True
    )
    check_whole(report, checkpoint, config)
    return model.eval()
