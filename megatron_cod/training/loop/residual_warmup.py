"""``--residual-warmup-steps`` under CUDA graphs: the branches' weights, filled from outside of what is captured.

Without graphs the forward step sets them (batches.py).
"""

from __future__ import annotations

import torch

from megatron_cod.args import MegatronArgs
from megatron_cod.schemes.residual import GraphWeights, warming_up
from megatron_cod.training.loop.observers import Observer, Run


class GraphWarmup(Observer):
    """Sets the weights of this rank's residual joins to those of the current training step."""

    def __init__(self, args: MegatronArgs) -> None:
        """args: Megatron's, whose ``curr_iteration`` is the current training step."""
        self._args = args
        self._weights: GraphWeights | None = None

    @classmethod
    def of(cls, run: Run) -> GraphWarmup | None:
        """Where there is a warm-up, under graphs."""
        graphed = run.args.residual_warmup_steps and run.args.cuda_graph_impl != "none"
        return cls(run.args) if graphed else None

    def model_built(self, model: list[torch.nn.Module]) -> None:
        """The layers read their weights from the device, before any of them is captured."""
        self._weights = GraphWeights(warming_up(model), next(model[0].parameters()).device)

    def training_begins(self) -> None:
        """Also of a run that only validates."""
        self.step_begins()

    def step_begins(self) -> None:
        """Fill the weights."""
        assert self._weights is not None
        self._weights.set_training_step(getattr(self._args, "curr_iteration", self._args.iteration))
