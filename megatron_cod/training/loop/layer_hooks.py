"""Forward hooks of layers, where CUDA graphs permit them."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from megatron.core.utils import get_model_config


def hook_layers(chunk: torch.nn.Module, hooks: Mapping[torch.nn.Module, Callable[..., None]]) -> None:
    """Call a forward hook for each of these layers of a chunk.

    Transformer Engine refuses to capture a module that has a hook. It captures between two steps, so under
    ``--cuda-graph-impl transformer_engine`` the hooks are there only while the chunk's forward runs; a replayed layer
    calls none.
    """
    if get_model_config(chunk).cuda_graph_impl != "transformer_engine":
        for layer, hook in hooks.items():
            layer.register_forward_hook(hook)
        return
    handles: list[Any] = []

    def add(*_: Any) -> None:
        handles.extend(layer.register_forward_hook(hook) for layer, hook in hooks.items())

    def remove(*_: Any) -> None:
        while handles:
            handles.pop().remove()

    chunk.register_forward_pre_hook(add)
    chunk.register_forward_hook(remove, always_call=True)
