"""Residual-stream variance per global layer, measured during validation and gathered over the pipeline."""

from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.transformer.transformer_layer import BaseTransformerLayer
from torch import Tensor

from megatron_cod.analysis.metrics import variance_tag


class StreamVariance:
    """Variance of each block's output over channels, mean over tokens (the paper's "output variance").

    Forward hooks add up during evaluation only, so a training step pays one attribute look-up a layer. Layers are
    keyed by their global number. ``collect`` and ``report`` are Megatron's ``non_loss_data_func`` (all ranks) and
    ``process_non_loss_data_func`` (last rank).
    """

    def __init__(self) -> None:
        self._sums: dict[int, Tensor] = {}
        self._counts: dict[int, int] = {}
        self._num_layers = 0

    def attach(self, model: list[torch.nn.Module]) -> list[torch.nn.Module]:
        """Megatron post-wrap hook: watch every decoder layer of this rank's chunks."""
        for chunk in model:
            for module in chunk.modules():
                if isinstance(module, BaseTransformerLayer) and not getattr(module, "is_mtp_layer", False):
                    self._num_layers = module.config.num_layers
                    module.register_forward_hook(self._hook)
                elif hasattr(module, "config") and hasattr(module.config, "num_layers"):
                    self._num_layers = module.config.num_layers
        return model

    def _hook(self, layer: Any, _: Any, output: Any) -> None:
        if layer.training:
            return
        hidden = output[0] if isinstance(output, tuple) else output  # [s, b, h]
        number = layer.layer_number
        variance = hidden.detach().float().var(dim=-1, unbiased=False)
        self._sums[number] = self._sums.get(number, 0.0) + variance.sum()
        self._counts[number] = self._counts.get(number, 0) + variance.numel()

    def collect(self, _: Sequence[torch.nn.Module]) -> list[float]:
        """Variance of layers 1..L since the last call. Collective over all ranks.

        Each rank holds some layers and some tokens; sums and counts add up over the world. TP ranks that saw the same
        tokens count them alike in both, so the ratio stands.
        """
        table = torch.zeros(2, self._num_layers, dtype=torch.float64)
        for number, total in self._sums.items():
            table[0, number - 1], table[1, number - 1] = float(total), self._counts[number]
        self._sums.clear()
        self._counts.clear()
        table = table.to(torch.cuda.current_device())
        torch.distributed.all_reduce(table)
        return (table[0] / table[1].clamp(min=1)).tolist()

    @staticmethod
    def report(variances: list[float], iteration: int, writer: Any) -> None:
        """Write the gathered variances as scalars, one per global layer."""
        for index, variance in enumerate(variances):
            writer.add_scalar(variance_tag(index + 1), variance, iteration)
