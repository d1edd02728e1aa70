"""Logits in fp32 where a model of lower precision is evaluated: bf16 rounds a logit of 10 by up to 0.03."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear

from megatron_cod.args import MegatronArgs
from megatron_cod.training.loop.observers import Observer, Run


class Fp32Logits(Observer):
    """Has the output layer compute in fp32 in evaluations; training stays as it is."""

    @staticmethod
    def of(run: Run) -> Fp32Logits | None:
        """Not with FSDP, whose weights are whole only where its own hooks have gathered them."""
        return None if _is_sharded(run.args) else Fp32Logits()

    def model_built(self, model: list[torch.nn.Module]) -> None:
        raise_logits(model)


def raise_logits(model: Sequence[torch.nn.Module]) -> None:
    """Have the output layer of a model compute in fp32 outside of training."""
    for chunk in model:
        for module in chunk.modules():
            layer = getattr(module, "output_layer", None)
            if isinstance(layer, ColumnParallelLinear):
                layer.register_forward_pre_hook(in_fp32, with_kwargs=True)


def _is_sharded(args: MegatronArgs) -> bool:
    return bool(args.use_megatron_fsdp or args.use_torch_fsdp2)


def in_fp32(
    layer: Any, inputs: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """A forward pre-hook of the output layer: hidden states and weight in fp32, outside of training."""
    weight = named.get("weight")
    weight = layer.weight if weight is None else weight
    if layer.training or weight.dtype == torch.float32:
        return None
    hidden, *rest = inputs
    return (hidden.float(), *rest), {**named, "weight": weight.float()}
