"""``--depth-monitor-interval``: what every block does to the residual stream, measured on training steps themselves.

Forward hooks add up over the micro-batches of a monitored step; where Megatron has finished the step's gradients, on all
ranks at once, the sums are gathered and written under global layer numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from megatron.core.num_microbatches_calculator import get_num_microbatches
from megatron.core.transformer.transformer_layer import BaseTransformerLayer
from megatron.core.utils import get_model_config
from torch import Tensor
from torch.distributed.tensor import DTensor

from megatron_cod.args import MegatronArgs
from megatron_cod.errors import UserError
from megatron_cod.schemes.design import input_gammas
from megatron_cod.training.loop.observers import Observer, Run
from megatron_cod.training.monitoring.reporting import write_scalar

COLUMNS = (
    *("variance before", "variance after", "branch over stream", "angular distance", "squared gradient"),
    "gamma mean",
)
"""Sums over tokens, in this order; behind them the number of tokens, those with a gradient, and the layers (for gamma)."""
_COUNTS = 3


def depth_tag(name: str, layer_number: int) -> str:
    """The metric's name for one global layer, padded so that names sort by depth."""
    return f"depth/{name}/layer {layer_number:03d}"


class DepthMonitor(Observer):
    """Watches the decoder layers of this rank; every ``interval``-th step it measures, on the others it looks away."""

    def __init__(
        self, interval: int, args: MegatronArgs, write: Callable[[str, float, int], None], log: Callable[[str], None]
    ) -> None:
        """args: Megatron's, with the number of the step. write: takes (name, value, step) on the rank that keeps the
        metrics. log: prints a line there."""
        if interval < 1:
            raise UserError(f"--depth-monitor-interval {interval} must be at least 1")
        self._interval, self._args, self._write, self._log = interval, args, write, log
        self._active, self._step = False, 0
        self._table = torch.zeros(0)
        self._layers: dict[int, torch.nn.Module] = {}
        self._config: Any = None

    @classmethod
    def of(cls, run: Run) -> DepthMonitor | None:
        """Where ``--depth-monitor-interval`` asks for it."""
        interval = run.args.depth_monitor_interval
        return cls(interval, run.args, write_scalar, run.lines.send) if interval else None

    def step_begins(self) -> None:
        """Is this step a monitored one?"""
        self._step = int(self._args.curr_iteration) + 1
        self._active = self._step % self._interval == 0

    def model_built(self, model: list[torch.nn.Module]) -> None:
        """Watch the layers."""
        depth = 0
        for chunk in model:
            for module in chunk.modules():
                depth = max(depth, getattr(getattr(module, "config", None), "num_layers", 0) or 0)
                if isinstance(module, BaseTransformerLayer) and not getattr(module, "is_mtp_layer", False):
                    self._layers[int(module.layer_number)] = module
                    module.register_forward_hook(self._hook, with_kwargs=True)
        device = next(model[0].parameters()).device
        self._table = torch.zeros(depth, len(COLUMNS) + _COUNTS, dtype=torch.float64, device=device)
        self._config = get_model_config(model[0])

    def gradients_ready(self) -> None:
        """The last backward of the step is done: gather and write its sums."""
        if self._active:
            self._report()

    def _hook(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        # With recompute a layer runs twice, first without gradients: that run does not count.
        if not self._active or not layer.training or not torch.is_grad_enabled():
            return
        before = (args[0] if args else kwargs["hidden_states"]).detach()  # [s, b, h]
        stream = output[0] if isinstance(output, tuple) else output
        row = self._table[int(layer.layer_number) - 1]
        row += _sums(_as_many(before, stream), stream.detach())
        if stream.requires_grad:
            stream.register_hook(lambda gradient: _add_gradient(row, gradient))

    def _report(self) -> None:
        self._active = False
        for number, layer in self._layers.items():
            gammas = torch.cat([_whole(gamma.detach()).double().flatten() for gamma in input_gammas(layer)])
            offset = 1.0 if layer.config.layernorm_zero_centered_gamma else 0.0
            self._table[number - 1, len(COLUMNS) - 1] = gammas.mean() + offset
            self._table[number - 1, -1] = 1.0
        torch.distributed.all_reduce(self._table)
        self._table[:, 4] /= self._loss_scale().square()
        # Megatron averages over context-parallel ranks as over micro-batches: a rank's own loss is as many times larger.
        # This is the one wait of a monitored step.
        values = means(self._table.cpu(), get_num_microbatches() / self._args.context_parallel_size)
        self._table.zero_()
        if self._args.fp16 and not all(map(math.isfinite, values["gradient norm"])):
            del values["gradient norm"]  # the loss scale overflowed, as it does by design: the step is skipped
        for name, column in values.items():
            for number, value in enumerate(column, 1):
                self._write(depth_tag(name, number), value, self._step)
        broken = first_broken(values)
        if broken:
            self._log(f"depth monitor: step {self._step}: the first values that are not finite are {broken}")

    def _loss_scale(self) -> Tensor:
        """What Megatron multiplied the loss by, for its gradients in fp16; 1 otherwise."""
        one = torch.ones((), dtype=torch.float64, device=self._table.device)
        scaled = self._config.grad_scale_func
        return one if scaled is None else scaled(one)


def _whole(gamma: Tensor) -> Tensor:
    """Under ``--use-torch-fsdp2`` a rank holds a piece of it. Collective then, over ranks with the same layers."""
    return gamma.full_tensor() if isinstance(gamma, DTensor) else gamma


def _as_many(before: Tensor, stream: Tensor) -> Tensor:
    """[s, b, h] -> [s, n b, h], copies, where a scheme's first block makes n streams of one."""
    copies = stream.shape[1] // before.shape[1]
    return before if copies == 1 else before.repeat_interleave(copies, dim=1)


def _sums(before: Tensor, after: Tensor) -> Tensor:
    """A row of the table from one micro-batch, [s, b, h] each: sums over tokens, and their number."""
    x, y = before.float(), after.float()
    norm_x, norm_y, difference = x.norm(dim=-1), y.norm(dim=-1), (y - x).norm(dim=-1)
    cosine = ((x * y).sum(dim=-1) / (norm_x * norm_y)).clamp(-1.0, 1.0)
    sums = [
        x.var(dim=-1, unbiased=False).sum(),
        y.var(dim=-1, unbiased=False).sum(),
        (difference / norm_x).sum(),
        (torch.acos(cosine) / math.pi).sum(),
        torch.zeros((), device=x.device),
        torch.zeros((), device=x.device),
        torch.full((), float(norm_x.numel()), device=x.device),
        torch.zeros((), device=x.device),
        torch.zeros((), device=x.device),
    ]
    return torch.stack(sums).double()


def _add_gradient(row: Tensor, gradient: Tensor) -> None:
    row[4] += gradient.float().square().sum().double()
    row[7] += gradient.numel() // gradient.shape[-1]


def means(table: Tensor, microbatches: float) -> dict[str, list[float]]:
    """Gathered sums [L, ...] -> a value for every layer and metric.

    ``gradient norm`` is the root mean square over tokens of the norm, over channels, of a micro-batch's loss gradient with
    respect to the stream after the block; Megatron divides losses by ``microbatches``, which is undone, so that the figure
    does not depend on the layout. The loss scale of fp16 is out of the sums already.
    """
    tokens, with_gradient, holders = table[:, 6], table[:, 7], table[:, 8]
    found = {name: table[:, place] / tokens for place, name in enumerate(COLUMNS[:4])}
    found["gradient norm"] = microbatches * (table[:, 4] / with_gradient).sqrt()
    found["gamma mean"] = table[:, 5] / holders
    return {name: column.tolist() for name, column in found.items()}


def first_broken(values: Mapping[str, Sequence[float]]) -> str | None:
    """The lowest layer whose stream is not finite, else the highest whose gradient is not: where each comes from."""
    after = next((n for n, value in enumerate(values["variance after"], 1) if not math.isfinite(value)), None)
    if after is not None:
        return f"those of layer {after}'s output"
    gradients = values.get("gradient norm", ())
    back = next((n for n in range(len(gradients), 0, -1) if not math.isfinite(gradients[n - 1])), None)
    return None if back is None else f"the gradients behind layer {back}"
