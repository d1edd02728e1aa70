"""Hooks of layers: always there, or under Transformer Engine's graphs only while the model's forward runs."""

from types import SimpleNamespace

import pytest
import torch

from megatron_cod.training.loop.layer_hooks import hook_layers


class Chunk(torch.nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.config = SimpleNamespace(cuda_graph_impl=kind)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(2))

    def forward(self, x: torch.Tensor, fails: bool = False) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        if fails:
            raise RuntimeError("in the forward")
        return x


def hooked(kind: str) -> tuple[Chunk, list]:
    chunk, seen = Chunk(kind), []
    hook_layers(chunk, {layer: lambda layer, *_: seen.append(layer) for layer in chunk.layers})
    return chunk, seen


@pytest.mark.parametrize("kind", ["none", "local", "transformer_engine", "full_iteration"])
def test_every_forward_calls_each_hook_once(kind):
    chunk, seen = hooked(kind)
    for _ in range(2):
        chunk(torch.zeros(1, 2))
    assert seen == [*chunk.layers, *chunk.layers]


def test_transformer_engine_captures_layers_without_hooks():
    chunk, _ = hooked("transformer_engine")
    for fails in (False, True):
        assert not any(layer._forward_hooks for layer in chunk.layers)
        try:
            chunk(torch.zeros(1, 2), fails)
        except RuntimeError:
            assert fails
    assert not any(layer._forward_hooks for layer in chunk.layers)
    assert all(layer._forward_hooks for layer in hooked("local")[0].layers)
