"""Troubles put into a rank before it trains; objects, since they travel to another process."""

import functools
import importlib
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any


def current_step() -> int:
    """The training step at hand, from 1; 0 before the first."""
    from megatron.training.global_vars import get_args

    try:
        return int(getattr(get_args(), "curr_iteration", -1)) + 1
    except AssertionError:
        return 0


@dataclass(frozen=True)
class BrokenLayer:
    """NaN in the output, or in the gradient behind it, of one global layer, at one rank and some steps."""

    layer: int
    steps: tuple[int, ...]
    rank: int
    backward: bool = False
    once: bool = False
    """For the first micro-batch of each of the steps, and not again when it is computed again."""

    def __call__(self) -> None:
        from megatron.core.transformer.transformer_layer import TransformerLayer

        forward = TransformerLayer.forward
        done: set[int] = set()

        def broken(layer: Any, *args: Any, **kwargs: Any) -> Any:
            hidden, *rest = forward(layer, *args, **kwargs)
            mine = layer.layer_number == self.layer and int(os.environ["RANK"]) == self.rank
            if mine and layer.training and current_step() in self.steps and current_step() not in done:
                if self.once:
                    done.add(current_step())
                if self.backward:
                    hidden.register_hook(lambda gradient: gradient * float("nan"))
                else:
                    hidden = hidden * float("nan")
            return (hidden, *rest)

        TransformerLayer.forward = broken


@dataclass(frozen=True)
class BrokenLoss:
    """The loss of one rank is infinite at one step."""

    step: int
    rank: int

    def __call__(self) -> None:
        from megatron.core.models.gpt import GPTModel

        forward = GPTModel.forward

        def broken(model: Any, *args: Any, **kwargs: Any) -> Any:
            output = forward(model, *args, **kwargs)
            if model.training and current_step() == self.step and int(os.environ["RANK"]) == self.rank:
                output = output / 0.0
            return output

        GPTModel.forward = broken


class _Endless:
    """A loader that gives nothing and does not end."""

    def __next__(self) -> Any:
        time.sleep(1000)


@dataclass(frozen=True)
class Stuck:
    """One rank stops at a step: 'stopped' by a signal, or 'loading' forever."""

    rank: int
    step: int
    how: str

    def __call__(self) -> None:
        if int(os.environ["RANK"]) != self.rank:
            return
        if self.how == "stopped":
            threading.Thread(target=self._stop, daemon=True).start()
            return
        from megatron_cod.training.data import batches

        get_batch = batches.get_batch

        def stuck(data: Any, *args: Any, **kwargs: Any) -> Any:
            return get_batch(_Endless() if current_step() == self.step else data, *args, **kwargs)

        batches.get_batch = stuck

    def _stop(self) -> None:
        while current_step() < self.step:
            time.sleep(0.01)
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGSTOP)


@dataclass(frozen=True)
class StuckIn:
    """One rank never comes back from a function, found under this name in a module."""

    module: str
    name: str
    rank: int

    def __call__(self) -> None:
        if int(os.environ["RANK"]) != self.rank:
            return
        *path, last = self.name.split(".")
        owner = functools.reduce(getattr, path, importlib.import_module(self.module))
        setattr(owner, last, lambda *args, **kwargs: time.sleep(1000))


@dataclass(frozen=True)
class FailsAt:
    """One rank raises in the forward step of a training step."""

    rank: int
    step: int

    def __call__(self) -> None:
        from megatron_cod.training.data import batches

        get_batch = batches.get_batch

        def failing(*args: Any, **kwargs: Any) -> Any:
            if current_step() == self.step and int(os.environ["RANK"]) == self.rank:
                raise ZeroDivisionError(f"in step {self.step}")
            return get_batch(*args, **kwargs)

        batches.get_batch = failing


@dataclass(frozen=True)
class StuckLayer:
    """The first layer of one rank never comes back from a step: stuck in compute."""

    rank: int
    step: int

    def __call__(self) -> None:
        from megatron.core.transformer.transformer_layer import TransformerLayer

        forward = TransformerLayer.forward

        def stuck(layer: Any, *args: Any, **kwargs: Any) -> Any:
            while current_step() == self.step and int(os.environ["RANK"]) == self.rank:
                time.sleep(0.1)
            return forward(layer, *args, **kwargs)

        TransformerLayer.forward = stuck


@dataclass(frozen=True)
class OtherCollective:
    """One rank does something else than the others in the first all-reduce of a step, of tensors large enough:
    'omitted', another 'kind', or another 'size'."""

    rank: int
    step: int
    how: str
    least: int = 64

    def __call__(self) -> None:
        import torch

        all_reduce, done = torch.distributed.all_reduce, []

        def other(tensor: Any, *args: Any, **kwargs: Any) -> Any:
            mine = int(os.environ["RANK"]) == self.rank and current_step() == self.step
            if done or not mine or tensor.numel() < self.least:
                return all_reduce(tensor, *args, **kwargs)
            done.append(1)
            group = kwargs.get("group")
            if self.how == "size":
                return all_reduce(tensor.view(-1)[: tensor.numel() // 2], *args, **kwargs)
            if self.how == "kind":
                return torch.distributed.broadcast(tensor, group_src=0, group=group)
            return None

        torch.distributed.all_reduce = other
