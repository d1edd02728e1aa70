"""Residual-stream variance per global layer, measured during validation and gathered over the pipeline."""

from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.transformer.transformer_layer import BaseTransformerLayer

from megatron_cod.analysis.metrics import variance_tag
from megatron_cod.training.loop.layer_hooks import hook_layers
from megatron_cod.training.loop.observers import VarianceObserver


class StreamVariance(VarianceObserver):
    """Variance of each block's output over channels, mean over tokens (the paper's "output variance").

    Forward hooks add up during evaluation only, so a training step pays one attribute look-up a layer. They add on the
    device, in place: a replay of a validation that was captured as a whole adds as well, and only ``collect`` waits. Layers
    are keyed by their global number. ``collect`` and ``report`` are Megatron's ``non_loss_data_func`` (all ranks) and
    ``process_non_loss_data_func`` (last rank).
    """

    def __init__(self) -> None:
        self._table = torch.zeros(0)  # [2, L]: sums, and over how many tokens

    def model_built(self, model: list[torch.nn.Module]) -> None:
        """Watch every decoder layer of this rank's chunks."""
        depth = 0
        for chunk in model:
            hooks: dict[torch.nn.Module, Any] = {}
            for module in chunk.modules():
                depth = max(depth, getattr(getattr(module, "config", None), "num_layers", 0) or 0)
                if isinstance(module, BaseTransformerLayer) and not getattr(module, "is_mtp_layer", False):
                    hooks[module] = self._hook
                    if hasattr(module, "cudagraph_manager"):
                        validate_without_graph(module)
            hook_layers(chunk, hooks)
        self._table = torch.zeros(2, depth, dtype=torch.float64, device=torch.cuda.current_device())

    def _hook(self, layer: Any, _: Any, output: Any) -> None:
        if layer.training:
            return
        hidden = output[0] if isinstance(output, tuple) else output  # [s, b, h]
        variance = hidden.detach().float().var(dim=-1, unbiased=False)
        sums, tokens = self._table[:, layer.layer_number - 1]
        sums += variance.sum()
        tokens += variance.numel()

    def collect(self, _: Sequence[torch.nn.Module]) -> list[float]:
        """Variance of layers 1..L since the last call. Collective over all ranks; waits for the device once.

        Each rank holds some layers and some tokens; sums and counts add up over the world. TP ranks that saw the same
        tokens count them alike in both, so the ratio stands.
        """
        torch.distributed.all_reduce(self._table)
        found = (self._table[0] / self._table[1].clamp(min=1)).tolist()
        self._table.zero_()  # in place: a captured graph adds to this one
        return found

    @staticmethod
    def report(variances: list[float], iteration: int, writer: Any) -> None:
        """Write the gathered variances as scalars, one per global layer."""
        for index, variance in enumerate(variances):
            writer.add_scalar(variance_tag(index + 1), variance, iteration)


def validate_without_graph(layer: Any) -> None:
    """Have a layer under ``--cuda-graph-impl local`` run as it is in validation.

    Megatron 0.19.2 replays the graph of training there: with dropout, and without hooks. An attribute of this one object.
    """
    in_graph = layer._should_call_local_cudagraph

    def in_training(*rest: Any, **kwargs: Any) -> bool:
        return layer.training and in_graph(*rest, **kwargs)

    layer._should_call_local_cudagraph = in_training
