"""``--compile-layers``: torch.compile on the layers of the torch backend, one graph for all of them.

Only a layer's ``forward`` is compiled, so hooks of the layer itself (depth monitor, variance) run as always, and so do
validation and generation, whose shapes differ. A layer inside which somebody has hooked runs as it is: the compiler would
drop a hook that is added after it has compiled. Depth factors enter the graph as tensors, not as constants: as constants
they would give each layer a graph of its own.
"""

import os
from collections.abc import Callable
from typing import Any

import torch
from megatron.core.transformer.transformer_layer import BaseTransformerLayer

from megatron_cod.schemes.depth import depth_scaled_modules


class CompiledForward:
    """A layer's ``forward`` that is compiled in training."""

    def __init__(self, layer: torch.nn.Module, backend: str = "inductor") -> None:
        """backend: of torch.compile."""
        self._layer = layer
        self._eager: Callable[..., Any] = layer.forward
        self._compiled: Callable[..., Any] = torch.compile(layer.forward, dynamic=False, backend=backend)
        self._inside = [module for module in layer.modules() if module is not layer]
        self._is_bound = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the layer's own."""
        if not self._layer.training or any(one._forward_hooks or one._forward_pre_hooks for one in self._inside):
            return self._eager(*args, **kwargs)
        if not self._is_bound:
            self._bind()
        return self._compiled(*args, **kwargs)

    def _bind(self) -> None:
        """Depth factors as tensors, where the weights are by now."""
        device = next(self._layer.parameters()).device
        for module in depth_scaled_modules(self._layer):
            module.compiled_factor = torch.tensor(module.bound_factor(), dtype=torch.float32, device=device)
        self._is_bound = True


def _enable_compiler() -> None:
    """On a machine without CUDA it is off (``adaptations.cpu``), so that Megatron's fusions are not compiled."""
    os.environ.pop("TORCHDYNAMO_DISABLE", None)
    import torch._dynamo

    torch._dynamo.config.disable = False


def compile_layers(model: list[torch.nn.Module], backend: str = "inductor") -> list[torch.nn.Module]:
    """Compile every layer of these chunks in place (a ``pre_wrap_hook``). backend: of torch.compile."""
    _enable_compiler()
    for chunk in model:
        for module in list(chunk.modules()):
            if isinstance(module, BaseTransformerLayer):
                module.forward = CompiledForward(module, backend)  # type: ignore[assignment]
    return model
