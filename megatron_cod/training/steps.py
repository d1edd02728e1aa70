"""Where our own code runs in Megatron's loop, which has no callbacks.

A training step begins where Megatron zeroes the gradients: the first thing it does in each, on every rank, with DDP and
either FSDP, and outside of any CUDA graph. The forward step that Megatron calls would not do: a graph of the whole
iteration is replayed without it. A forward step begins in that function, where it runs.
"""

from collections.abc import Callable
from typing import Any

import torch


class Steps:
    """Tells others when forward steps and training steps begin on this rank, each in the order given."""

    def __init__(self, args: Any) -> None:
        """args: Megatron's, which say what training step is at hand."""
        self._args = args
        self._iteration: int | None = None
        self._begun = False
        self.first: list[Callable[[], None]] = []
        """Called once, when the first training step or, where none comes before it, forward step begins."""
        self.each_step: list[Callable[[], None]] = []
        """Called when a training step begins, outside of CUDA graphs; what came before it is done and saved."""
        self.each_forward: list[Callable[[], None]] = []
        """Called for every micro-batch, of training and validation; not where a graph of the iteration is replayed."""

    def not_begun(self) -> bool:
        """Whether no forward step was made yet."""
        return not self._begun

    def attach(self, model: list[torch.nn.Module]) -> list[torch.nn.Module]:
        """Megatron post-wrap hook: notice when training steps begin."""
        first: Any = model[0]
        zero_gradients = getattr(first, "zero_grad_buffer", None)
        if zero_gradients is None:  # --skip-train: a model without gradients
            return model

        def step_begins(*rest: Any, **kwargs: Any) -> Any:
            self._step_begins()
            return zero_gradients(*rest, **kwargs)

        first.zero_grad_buffer = step_begins  # an attribute of this one object
        return model

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            for call in self.first:
                call()

    def _step_begins(self) -> None:
        # Gradients are zeroed again where a step is run again, and by those who capture graphs.
        iteration = getattr(self._args, "curr_iteration", None)
        if iteration == self._iteration:
            return
        self._iteration = iteration
        self._begin()
        for call in self.each_step:
            call()

    def watch(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """The same forward step, telling those who want to know."""

        def watched(*rest: Any) -> Any:
            self._begin()
            for call in self.each_forward:
                call()
            return step(*rest)

        return watched
