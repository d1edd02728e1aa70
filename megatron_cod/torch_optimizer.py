"""Megatron's distributed optimizer over torch's AdamW, the Adam of a machine without Transformer Engine and Apex."""

import functools
from collections.abc import Callable
from typing import Any


def with_optimizer_state(original: Callable[..., Any]) -> Callable[..., Any]:
    """``DistributedOptimizer.state_dict`` that also works before the first step, as when a checkpoint is loaded.

    With torch's AdamW it asserts that a step was taken. So take one, of zero gradients at learning rate 0: it makes the
    state, which loading then fills, and moves no parameter.
    """

    @functools.wraps(original)
    def wrapper(self: Any) -> Any:
        if not self.optimizer.state:
            rates = [group["lr"] for group in self.optimizer.param_groups]
            for group in self.optimizer.param_groups:
                group["lr"] = 0.0
            self._init_optimizer_states_with_dummy_values()
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
        return original(self)

    return wrapper


def with_step(original: Callable[..., Any]) -> Callable[..., Any]:
    """Loading asks for every tensor of the optimizer's state; AdamW's step count is one, and comes in another way."""

    @functools.wraps(original)
    def wrapper(self: Any, model_param: Any, tensors: dict[str, Any]) -> None:
        original(self, model_param, {"step": None, **tensors})

    return wrapper


def with_own_steps(original: Callable[..., Any]) -> Callable[..., Any]:
    """Loading gives all parameters one and the same step tensor, which AdamW then counts up once a parameter."""

    @functools.wraps(original)
    def wrapper(self: Any, state_dict: Any) -> None:
        original(self, state_dict)
        for state in self.optimizer.state.values():
            state["step"] = state["step"].clone()

    return wrapper


def with_loading_flag(original: Callable[..., Any]) -> Callable[..., Any]:
    """``ChainedOptimizer.state_dict`` that hands ``is_loading`` on, with which a torch_dcp checkpoint is loaded."""

    @functools.wraps(original)
    def wrapper(self: Any, is_loading: bool = False) -> Any:
        if not is_loading:
            return original(self)
        states = [optimizer.state_dict(is_loading=True) for optimizer in self.chained_optimizers]
        return states[0] if len(states) == 1 else states

    return wrapper
