"""Models for the diagnostics: any causal language model of transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from megatron_cod.analysis.depth.traced import TracedModel
from megatron_cod.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


def find_blocks(model: torch.nn.Module, name: str | None = None) -> Sequence[torch.nn.Module]:
    """The list of a model's blocks: the one called ``name``, or the only one as long as its configuration says.

    Raises UserError, with all lists, when that is ambiguous.
    """
    lists = {
        path: found for path, found in model.named_modules() if isinstance(found, torch.nn.ModuleList) and len(found)
    }
    known = ", ".join(f"{path} ({len(found)})" for path, found in lists.items()) or "none"
    if name is not None:
        if name not in lists:
            raise UserError(f"--blocks {name}: the model has no such list of modules; it has {known}")
        return lists[name]
    config = getattr(model, "config", None)
    depth = next((getattr(config, one) for one in COUNTS if getattr(config, one, None)), None)
    fitting = [found for found in lists.values() if len(found) == depth]
    # Experts of a layer may be as many as layers: their list lies within a block.
    outer = [found for found in fitting if not any(_within(found, other) for other in fitting if other is not found)]
    if len(outer) != 1:
        raise UserError(f"cannot tell which modules are the blocks; give --blocks, one of: {known}")
    return outer[0]


def _within(inner: torch.nn.ModuleList, outer: torch.nn.ModuleList) -> bool:
    return any(module is inner for module in outer.modules())


def traced_transformers(model: Any, blocks: str | None = None) -> TracedModel:
    """A causal language model of transformers, in eval mode. blocks: see ``find_blocks``."""
    model.eval()

    def run(tokens: torch.Tensor) -> torch.Tensor:
        return model(input_ids=tokens, use_cache=False).logits

    return TracedModel(run, find_blocks(model, blocks), vocab_size=model.config.vocab_size, module=model)
