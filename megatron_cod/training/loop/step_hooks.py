"""Calls the observers of a run from Megatron's loop, which has no callbacks.

A training step begins where Megatron zeroes the gradients: the first thing it does in each, on every rank, with DDP and
either FSDP, and outside of any CUDA graph. The forward step that Megatron calls would not do: a graph of the whole
iteration is replayed without it. A forward step begins in that function, where it runs. The gradients are ready where
Megatron has finished them, which it does within a graph of the whole iteration, where no process can wait for them.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from megatron.core.distributed import finalize_model_grads
from megatron.core.utils import get_model_config

from megatron_cod.errors import Phase
from megatron_cod.training.loop.observers import Observer, Run, watch_for


class Steps:
    """Calls the observers of a run, in order, at each event on this rank."""

    def __init__(self, run: Run) -> None:
        """run: its ``observers`` are read when something happens; its arguments have the number of the training step."""
        self._run, self._args = run, run.args
        self._iteration: int | None = None
        self._begun = False

    @property
    def phase(self) -> Phase:
        """What a run that trains is at."""
        return Phase.TRAINING if self._begun else Phase.SET_UP

    def attach(self, model: list[torch.nn.Module]) -> list[torch.nn.Module]:
        """Megatron post-wrap hook: find the optimizer's moments, and report that the model is built."""
        hook_gradients(model, self._run.observers)
        self._hook_steps(model[0])
        for one in self._run.observers:
            one.model_built(model)
        return model

    def _hook_steps(self, first: Any) -> None:
        zero_gradients = getattr(first, "zero_grad_buffer", None)
        if zero_gradients is None:  # --skip-train: a model without gradients
            return

        def step_begins(*rest: Any, **kwargs: Any) -> Any:
            self._step_begins()
            return zero_gradients(*rest, **kwargs)

        first.zero_grad_buffer = step_begins  # an attribute of this one object

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            for one in self._run.observers:
                one.training_begins()

    def _step_begins(self) -> None:
        # Gradients are zeroed again where a step is run again, and by those who capture graphs.
        iteration = getattr(self._args, "curr_iteration", None)
        if iteration == self._iteration:
            return
        self._iteration = iteration
        self._begin()
        for one in self._run.observers:
            one.step_begins()

    def watch(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """The forward step for Megatron: it calls the observers first, and runs in what they wrap around it."""

        def watched(*rest: Any) -> Any:
            self._begin()
            for one in self._run.observers:
                one.forward_begins()
            return step(*rest)

        wrapped: Callable[..., Any] = watched
        for one in self._run.observers:
            wrapped = one.wrap_forward(wrapped)
        return wrapped


def hook_gradients(model: list[Any], observers: Iterable[Observer]) -> None:
    """Call the observers when the gradients of a training step are ready; they may raise, or wait for others."""
    config = get_model_config(model[0])
    watching = watch_for("gradients_ready", observers)
    if not watching or config.cuda_graph_impl == "full_iteration":
        return
    finalize = config.finalize_model_grads_func or finalize_model_grads  # Megatron's default, set later

    def finalized(*rest: Any, **kwargs: Any) -> None:
        finalize(*rest, **kwargs)
        for one in watching:
            one.gradients_ready()

    config.finalize_model_grads_func = finalized
