"""The layer behind a step that is not finite: the step's micro-batches run once more, with every layer watched.

Only then do forward hooks add ``0 * sum(output)`` of every layer into a row of flags, which stays 0 until something is not
finite. All ranks run it, as they ran the step, with its random numbers. The gradients are left in Megatron's
buffers: they belong to a step that is not taken.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.num_microbatches_calculator import get_num_microbatches
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from megatron.core.transformer.transformer_layer import BaseTransformerLayer
from megatron.core.utils import get_model_config
from torch import Tensor
from torch.distributed.tensor import DTensor

from megatron_cod.args import MegatronArgs


def zero_if_finite(value: Tensor) -> Tensor:
    """0, or NaN where an element is NaN or infinite."""
    return 0.0 * value.sum(dtype=torch.float32)


class StepRecord:
    """What a rank read and what losses it got in the current training step: references, no copies."""

    def __init__(self) -> None:
        self.forward_step: Callable[..., Any] | None = None
        self.random: tuple[Any, ...] | None = None
        self._batches: dict[int, list[Any]] = {}
        self._losses: list[Tensor] = []
        self._over = False

    def watch(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """The same forward step, recorded while it trains."""
        self.forward_step = step

        def watched(data: Any, chunk: Any, *rest: Any) -> Any:
            if not chunk.training:
                return step(data, chunk, *rest)
            if self._over or not self._batches:
                self._begin(get_model_config(chunk))
            kept = self._batches.setdefault(id(chunk), [])
            output, loss_function = step(data if data is None else _Kept(data, kept), chunk, *rest)
            return output, self._seeing_loss(loss_function)

        return watched

    def _begin(self, config: Any) -> None:
        # Not where the step ends: a graph's replay is recorded once, when it is captured, in memory that each step fills.
        self._over = False
        self._batches.clear()
        self._losses.clear()
        draws = config.hidden_dropout > 0 or config.attention_dropout > 0
        capturing = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
        self.random = random_states() if draws and not capturing else None

    def _seeing_loss(self, loss_function: Callable[..., Any]) -> Callable[..., Any]:
        def seen(*args: Any, **kwargs: Any) -> Any:
            result = loss_function(*args, **kwargs)
            self._losses.append(result[0].detach())
            return result

        return seen

    def step_over(self) -> None:
        """The step is checked; the next forward step begins another."""
        self._over = True

    def zero_if_finite(self) -> Tensor:
        """Of this rank's losses, which are a few numbers where it has any."""
        if not self._losses:
            return torch.zeros((), device=torch.cuda.current_device())
        return zero_if_finite(torch.stack([loss.float() for loss in self._losses]))

    def batches(self, chunk: Any) -> Iterator[Any]:
        """What a chunk of the model read, in order."""
        return iter(list(self._batches.get(id(chunk), [])))


class _Kept:
    """An iterator that keeps what it gives."""

    def __init__(self, data: Any, kept: list[Any]) -> None:
        self._data, self._kept = data, kept

    def __iter__(self) -> _Kept:
        return self

    def __next__(self) -> Any:
        one = next(self._data)
        self._kept.append(one)
        return one


def random_states() -> tuple[Any, ...]:
    """All states that dropout draws from."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(), get_cuda_rng_tracker().get_states()


def set_random_states(states: tuple[Any, ...]) -> None:
    torch.set_rng_state(states[0])
    torch.cuda.set_rng_state(states[1])
    get_cuda_rng_tracker().set_states(dict(states[2]))


@dataclass(frozen=True)
class Found:
    """What is not finite on this rank in the second run of a step."""

    outputs: list[int]
    """Layers, from the lowest; layer 0 is the embedding."""
    gradients: list[int]
    """Layers behind whose output the gradient is not finite, from the highest."""
    loss: bool
    parameters: list[str]

    @property
    def anything(self) -> bool:
        return bool(self.outputs or self.gradients or self.loss or self.parameters)


def search(model: Sequence[Any], record: StepRecord, args: MegatronArgs) -> Found | None:
    """Run the recorded step again; collective, with all ranks. None where it cannot be run or watched."""
    config = get_model_config(model[0])
    if record.forward_step is None or config.cuda_graph_impl not in ("none", "full_iteration"):
        return None  # graphs of layers would be replayed here too, and no hook runs in them
    loss = config.num_layers + 1
    flags = torch.zeros(2, loss + 1, device=next(model[0].parameters()).device)
    with _watched(model, flags), _aside(model, record):
        _run(model, record, args)
    outputs, gradients = (row.nonzero().flatten().tolist() for row in ~torch.isfinite(flags))
    return Found(
        outputs=[layer for layer in outputs if layer != loss],
        gradients=sorted((layer for layer in gradients if layer != loss), reverse=True),
        loss=loss in outputs,
        parameters=broken_gradients(model),
    )


def _run(model: Sequence[Any], record: StepRecord, args: MegatronArgs) -> None:
    iterators = [record.batches(chunk) for chunk in model]
    get_forward_backward_func()(
        forward_step_func=record.forward_step,
        data_iterator=iterators if len(model) > 1 else iterators[0],
        model=list(model),
        num_microbatches=get_num_microbatches(),
        seq_length=args.seq_length,
        micro_batch_size=args.micro_batch_size,
        decoder_seq_length=args.decoder_seq_length,
        forward_only=False,
    )
    for chunk in model:
        if getattr(getattr(chunk, "ddp_config", None), "overlap_grad_reduce", False):
            chunk.finish_grad_sync()  # the last backward has begun it


@contextmanager
def _aside(model: Sequence[Any], record: StepRecord) -> Iterator[None]:
    """What a second run of a step must not change: random states, buffers (an expert's counts), what follows a step."""
    config = get_model_config(model[0])
    timers, finalize = config.timers, config.finalize_model_grads_func
    random = random_states()
    # Module by module: a chunk under DDP has other ``buffers``.
    kept = (module.named_buffers(recurse=False) for chunk in model for module in chunk.module.modules())
    buffers = [(buffer, buffer.clone()) for of_module in kept for _, buffer in of_module]
    config.timers = config.finalize_model_grads_func = None
    for chunk in model:
        chunk.zero_grad_buffer()  # and what DDP knows of gradients that are ready
    if record.random is not None:
        set_random_states(record.random)
    try:
        yield
    finally:
        config.timers, config.finalize_model_grads_func = timers, finalize
        set_random_states(random)
        for buffer, before in buffers:
            buffer.copy_(before)


@contextmanager
def _watched(model: Sequence[Any], flags: Tensor) -> Iterator[None]:
    """Layers, embedding and loss of this rank's chunks under hooks; flags: [2, L + 2], outputs of 0..L and the loss, and
    gradients behind them."""
    handles = [
        module.register_forward_hook(_hook(flags, place)) for chunk in model for module, place in _places(chunk, flags)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _places(chunk: Any, flags: Tensor) -> Iterator[tuple[Any, int]]:
    for module in chunk.modules():
        if isinstance(module, BaseTransformerLayer) and not getattr(module, "is_mtp_layer", False):
            yield module, int(module.layer_number)
        elif hasattr(module, "vp_stage") and hasattr(module, "post_process"):  # the model itself
            if getattr(module, "embedding", None) is not None and module.pre_process:
                yield module.embedding, 0
            if module.post_process:
                yield module, flags.shape[1] - 1


def _hook(flags: Tensor, place: int) -> Callable[..., None]:
    outputs, gradients = flags

    def hook(_module: torch.nn.Module, _: Any, output: Any) -> None:
        value = output[0] if isinstance(output, tuple) else output

        def backward(gradient: Tensor) -> None:
            gradients[place] += zero_if_finite(gradient)

        outputs[place] += zero_if_finite(value.detach())
        if value.requires_grad:
            value.register_hook(backward)

    return hook


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


def whole_gradients(model: Sequence[Any]) -> Iterator[Tensor]:
    """All gradients of this rank in as few tensors as there are: Megatron's buffers, else a tensor a parameter."""
    for chunk in model:
        if isinstance(chunk, DistributedDataParallel):
            yield from (buffer.grad_data for buffer in [*chunk.buffers, *chunk.expert_parallel_buffers])
        else:
            yield from (gradient for _, gradient in gradients_of([chunk]))


def broken_gradients(model: Sequence[Any]) -> list[str]:
    """The first few parameters whose gradient is not finite."""
    named = (name for name, gradient in gradients_of(model) if not bool(torch.isfinite(gradient).all()))
    return list(itertools.islice(named, 3))
