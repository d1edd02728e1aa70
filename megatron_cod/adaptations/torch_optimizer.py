"""Megatron's optimizers over torch's AdamW, the Adam of a machine without Transformer Engine and Apex."""

import functools
from collections.abc import Callable
from typing import Any

import torch


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


def state_beside_parameters(self: Any) -> None:
    """``HybridDeviceOptimizer._move_new_state_to_right_device`` that goes by where a parameter lies.

    Megatron goes by the optimizer's class: the host's is torch's AdamW, but so is the GPU's here.
    """
    for optimizer in self.sub_optimizers:
        for param, state in optimizer.state.items():
            original = self.inner_param_to_orig_param.get(param, param)
            for key, value in state.items():
                if torch.is_tensor(value):
                    self.state[original][key] = state[key] = value.to(param.device)


def with_loading_flag(original: Callable[..., Any]) -> Callable[..., Any]:
    """``ChainedOptimizer.state_dict`` that takes ``is_loading``, with which it is called to load a torch_dcp checkpoint.

    What such a checkpoint holds is read into the tensors that are there: so they are made, AdamW's step count too.
    """

    @functools.wraps(original)
    def wrapper(self: Any, is_loading: bool = False) -> Any:
        for optimizer in self.chained_optimizers if is_loading else ():
            optimizer.init_state_fn(optimizer.optimizer, optimizer.config)
            for state in optimizer.optimizer.state.values():
                state.setdefault("step", torch.tensor(0.0))
        return original(self)

    return wrapper


def _may_fuse(group: dict[str, Any]) -> bool:
    """Whether torch's fused kernel does what this group asks for, and nobody has chosen another."""
    unset = group["fused"] is None and group["foreach"] is None
    plain = not (group["capturable"] or group["differentiable"]) and not isinstance(group["lr"], torch.Tensor)
    return unset and plain and all(type(one) in (torch.Tensor, torch.nn.Parameter) for one in group["params"])


def with_fused_kernel(original: Callable[..., Any]) -> Callable[..., Any]:
    """``AdamW.step`` in one kernel a parameter; torch's default on the host is twelve operators.

    The choice holds for one step: checkpoints hold the groups, and other machines read them, with kernels of their own.
    """

    @functools.wraps(original)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        fused = [group for group in self.param_groups if _may_fuse(group)]
        for group in fused:
            group["fused"] = True
        try:
            return original(self, *args, **kwargs)
        finally:
            for group in fused:
                group["fused"] = None

    return wrapper
