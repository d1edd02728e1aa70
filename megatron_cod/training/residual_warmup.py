"""``--residual-warmup-steps`` under CUDA graphs: the branches' weights, filled from outside of what is captured.

Without graphs the forward step sets them (batches.py).
"""

from typing import Any

import torch

from megatron_cod.schemes.residual import GraphWeights, warming_up


class GraphWarmup:
    """Sets the weights of this rank's residual joins to those of the current training step."""

    def __init__(self, args: Any) -> None:
        """args: Megatron's, whose ``curr_iteration`` is the current training step."""
        self._args = args
        self._weights: GraphWeights | None = None

    def attach(self, model: list[torch.nn.Module]) -> list[torch.nn.Module]:
        """Megatron post-wrap hook: the layers read their weights from the device, before any of them is captured."""
        self._weights = GraphWeights(warming_up(model), next(model[0].parameters()).device)
        return model

    def step_begins(self) -> None:
        """A training step begins, or the validation of a run that does not train."""
        assert self._weights is not None
        self._weights.set_training_step(getattr(self._args, "curr_iteration", self._args.iteration))
