"""NaN and infinity in a step: where they came from, and that they do not get into the weights.

Forward hooks add ``0 * sum(output)`` of every layer into one row of flags, which stays 0 until something is not finite: a
reduction a layer and no synchronisation. Where Megatron has the step's gradients ready, on all ranks at once, one number
is reduced over the world; only when it tells of trouble is the place looked for.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.transformer.transformer_layer import BaseTransformerLayer
from megatron.core.utils import get_model_config
from torch import Tensor
from torch.distributed.tensor import DTensor

from megatron_cod.training.faults.events import Events, this_host
from megatron_cod.training.faults.flags import POLICIES
from megatron_cod.training.layer_hooks import hook_layers


class NonFiniteError(RuntimeError):
    """A step that cannot be used; its text is the line the user sees."""


@dataclass(frozen=True)
class Sighting:
    """What one rank saw in a step. Layers are global numbers; layer 0 is the embedding."""

    rank: int
    host: str
    outputs: list[int]
    """Layers whose output is not finite, from the lowest."""
    loss: bool
    gradients: list[int]
    """Layers behind whose output the gradient is not finite, from the highest."""
    parameters: list[str]
    """Parameters with such a gradient, the first few."""


def origin(sightings: Sequence[Sighting]) -> tuple[str, list[Sighting]]:
    """The first thing that went wrong, in words, and the sightings of it.

    In the order of computation: layers upwards, the loss, the gradients downwards; a gradient that is broken with sound
    inputs last. Of a replica's ranks only those that computed it themselves count, not those it was summed into.
    """
    outputs = [one.outputs[0] for one in sightings if one.outputs]
    if outputs:
        layer = min(outputs)
        name = f"the output of layer {layer}" if layer else "the output of the embedding"
        return name, [one for one in sightings if one.outputs[:1] == [layer]]
    losses = [one for one in sightings if one.loss]
    if losses:
        return "the loss", losses
    gradients = [one.gradients[0] for one in sightings if one.gradients]
    if gradients:
        layer = max(gradients)
        return f"the gradient behind layer {layer}", [one for one in sightings if one.gradients[:1] == [layer]]
    broken = [one for one in sightings if one.parameters]
    return f"the gradient of {broken[0].parameters[0]}" if broken else "a gradient", broken


class StepGuard:
    """``--on-nonfinite``: stops the run before such a step is taken, or leaves the step out."""

    def __init__(self, policy: str, most: int, args: Any, events: Events, say: Callable[[str], None]) -> None:
        """most: steps in a row that may be left out. say: prints a line on rank 0."""
        assert policy in POLICIES
        self._policy, self._most, self._args = policy, most, args
        self._events, self._say = events, say
        self._model: list[Any] = []
        self._flags = torch.zeros(0)  # [2, L + 2]: outputs of 0..L and the loss; gradients behind them
        self._skipped = 0

    def attach(self, model: list[torch.nn.Module]) -> list[torch.nn.Module]:
        """Megatron post-wrap hook: watch layers, embedding and loss of this rank's chunks, and the end of gradients."""
        config = get_model_config(model[0])
        self._model = model
        device = next(model[0].parameters()).device
        self._flags = torch.zeros(2, config.num_layers + 2, device=device)
        for chunk in model:
            hooks: dict[torch.nn.Module, Callable[..., None]] = {}
            for module in chunk.modules():
                if isinstance(module, BaseTransformerLayer) and not getattr(module, "is_mtp_layer", False):
                    hooks[module] = self._hook(int(module.layer_number))
                elif hasattr(module, "vp_stage") and hasattr(module, "post_process"):  # the model itself
                    if getattr(module, "embedding", None) is not None and module.pre_process:
                        module.embedding.register_forward_hook(self._hook(0))
                    if module.post_process:
                        module.register_forward_hook(self._hook(config.num_layers + 1))
            hook_layers(chunk, hooks)
        if config.cuda_graph_impl == "full_iteration":
            return model  # ``step_begins`` has it checked: gradients are finished within the graph, which cannot wait
        finalize = config.finalize_model_grads_func or finalize_model_grads  # Megatron's default, set later

        def finalized(*rest: Any, **kwargs: Any) -> None:
            finalize(*rest, **kwargs)
            if self._check():
                leave_out(config.grad_scale_func.__self__)

        config.finalize_model_grads_func = finalized
        return model

    def step_begins(self) -> None:
        """A training step begins. Where a graph holds forward and backward: check before the optimizer's step instead."""
        config = get_model_config(self._model[0])
        if config.cuda_graph_impl == "full_iteration":
            before_step(config.grad_scale_func.__self__, self._check)

    def _hook(self, place: int) -> Callable[..., None]:
        def hook(module: torch.nn.Module, _: Any, output: Any) -> None:
            if not module.training:
                return
            value = output[0] if isinstance(output, tuple) else output
            outputs, gradients = self._flags

            def backward(gradient: Tensor) -> None:
                gradients[place] += _zero_if_finite(gradient)

            outputs[place] += _zero_if_finite(value.detach())
            if value.requires_grad:
                value.register_hook(backward)

        return hook

    def _check(self) -> bool:
        """Whether the step is to be left out. Collective."""
        total = self._flags.sum() + sum(map(_zero_if_finite, _whole_gradients(self._model)))
        trouble = (~torch.isfinite(total)).to(torch.int32).reshape(1)
        torch.distributed.all_reduce(trouble, op=torch.distributed.ReduceOp.MAX)
        found = bool(trouble.item())
        sighting = self._sighting() if found else None
        self._flags.zero_()
        if sighting is None:
            self._skipped = 0
            return False
        gathered: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(gathered, sighting)
        self._act([one for one in gathered if one])
        return True

    def _sighting(self) -> Sighting:
        broken = ~torch.isfinite(self._flags)
        outputs, gradients = (row.nonzero().flatten().tolist() for row in broken)
        loss = self._flags.shape[1] - 1
        named = (name for name, gradient in gradients_of(self._model) if not bool(torch.isfinite(gradient).all()))
        return Sighting(
            rank=torch.distributed.get_rank(),
            host=this_host(),
            outputs=[layer for layer in outputs if layer != loss],
            loss=loss in outputs,
            gradients=sorted((layer for layer in gradients if layer != loss), reverse=True),
            parameters=list(itertools.islice(named, 3)),
        )

    def _act(self, sightings: list[Sighting]) -> None:
        step = int(self._args.curr_iteration) + 1
        name, seen = origin(sightings)
        ranks = ", ".join(f"rank {one.rank} on {one.host}" for one in seen[:4]) or "no rank by itself"
        line = f"step {step}: {name} is not finite ({ranks}{' and others' if len(seen) > 4 else ''})"
        self._skipped += 1
        facts = {"step": step, "origin": name, "ranks": [one.rank for one in seen]}
        if self._policy == "skip" and self._skipped <= self._most:
            self._events.add("step left out", **facts)
            self._say(f"WARNING: {line}; left out, {self._skipped} in a row of at most {self._most}")
            return
        self._events.add("not finite", **facts, sightings=[asdict(one) for one in seen[:4]])
        way = "" if self._policy == "stop" else f", as were the {self._most} steps before"
        raise NonFiniteError(f"{line}{way}; the weights are those of step {step - self._skipped}")


_LEFT_OUT = (False, None, None)  # as where the loss scaler found an overflow


def before_step(optimizer: Any, is_left_out: Callable[[], bool]) -> None:
    """Have the next ``step`` of a Megatron optimizer ask first, and do nothing but say so where it is left out.

    The learning rate's schedule then stays where it is, and the data goes on. An attribute of this one object, which may
    have one already (``--optimizer-cuda-graph``).
    """
    step = optimizer.step
    own = vars(optimizer).get("step")

    def asks_first() -> Any:
        if own is None:
            del optimizer.step
        else:
            optimizer.step = own
        return _LEFT_OUT if is_left_out() else step()

    optimizer.step = asks_first


def leave_out(optimizer: Any) -> None:
    """Have the next ``step`` of a Megatron optimizer do nothing and say so."""
    before_step(optimizer, lambda: True)


def gradients_of(model: Sequence[Any]) -> Iterator[tuple[str, Tensor]]:
    """(name with the global layer number, this rank's part of the gradient) of every parameter that has one."""
    for chunk in model:
        numbers = {
            name: int(module.layer_number)
            for name, module in chunk.named_modules()
            if isinstance(module, BaseTransformerLayer)
        }
        for name, parameter in chunk.named_parameters():
            gradient = getattr(parameter, "main_grad", None)
            gradient = parameter.grad if gradient is None else gradient
            if gradient is None:
                continue
            local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
            layer = next((prefix for prefix in numbers if name.startswith(prefix + ".")), None)
            short = name.removeprefix("module.").removeprefix("module.")
            if layer is not None:
                short = f"layer {numbers[layer]}'s {name.removeprefix(layer + '.')}"
            yield short, local


def _whole_gradients(model: Sequence[Any]) -> Iterator[Tensor]:
    """All gradients of this rank in as few tensors as there are: Megatron's buffers, else a tensor a parameter."""
    for chunk in model:
        if isinstance(chunk, DistributedDataParallel):
            yield from (buffer.grad_data for buffer in [*chunk.buffers, *chunk.expert_parallel_buffers])
        else:
            yield from (gradient for _, gradient in gradients_of([chunk]))


def _zero_if_finite(value: Tensor) -> Tensor:
    return 0.0 * value.sum(dtype=torch.float32)
