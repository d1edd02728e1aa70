"""Parameters that all layers share, one copy a pipeline stage: gains [h], each with numbers that say how layers differ.

The first chunk of a stage owns the copy; layers of its other chunks, under virtual stages, use it too. Megatron sums the
gradients of such copies over stages (its ``_allreduce_conditional_embedding_grads``) for parameters marked
``pipeline_parallel``, where the configuration has ``has_cond_embedder``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.transformer.utils import make_sharded_tensor_for_checkpoint

NAME = "shared_gains"
"""Of the module in the decoder, and so in checkpoint keys: ``decoder.shared_gains.SITE.gamma``."""


class SharedGain(torch.nn.Module):
    """gamma [h] and numbers [n], in the precision of the model; the optimizer holds them in fp32."""

    def __init__(self, hidden_size: int, start: tuple[float, ...]) -> None:
        super().__init__()
        self.start = start
        self.gamma = torch.nn.Parameter(torch.empty(hidden_size, dtype=torch.float32))
        self.numbers = torch.nn.Parameter(torch.empty(len(start), dtype=torch.float32))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start values, the same in every copy."""
        with torch.no_grad():
            self.gamma.fill_(1.0)
            self.numbers.copy_(torch.tensor(self.start))


class SharedGains(torch.nn.Module):
    """The shared gains of a model, by site: one copy of them."""

    def __init__(self, config: Any, starts: Mapping[str, tuple[float, ...]]) -> None:
        """starts: site -> the numbers' start values."""
        super().__init__()
        stages = config.pipeline_model_parallel_size
        self._stage = parallel_state.get_pipeline_model_parallel_rank() if stages > 1 else 0
        for site, start in starts.items():
            self.add_module(site, SharedGain(config.hidden_size, start))
        for parameter in self.parameters():
            parameter.pipeline_parallel = True  # type: ignore[attr-defined]
            # A bucket of its own: the distributed optimizer then cuts all copies alike, before they are summed.
            parameter.shared_embedding = True  # type: ignore[attr-defined]
            parameter.shared = self._stage > 0  # type: ignore[attr-defined]  # one copy counts in the gradient norm
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Checkpoints hold the gains once, whatever the layout; every copy is loaded from there."""
        tensor_rank = parallel_state.get_tensor_model_parallel_rank()
        data_rank = parallel_state.get_data_parallel_rank(with_context_parallel=True)
        return {
            prefix + name: make_sharded_tensor_for_checkpoint(
                parameter, prefix + name, replica_id=(self._stage, tensor_rank, data_rank)
            )
            for name, parameter in self.named_parameters()
        }


def attach_shared_gains(decoder: Any, starts: Mapping[str, tuple[float, ...]]) -> SharedGains:
    """Give the decoder of a stage's first chunk the stage's copy, before it is wrapped."""
    gains = SharedGains(decoder.config, starts)
    decoder.add_module(NAME, gains)
    return gains
