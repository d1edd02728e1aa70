"""How a block's branch joins the residual stream: what is in the place of Megatron's bias-dropout-add.

Megatron's layer calls its ``self_attn_bda`` and ``mlp_bda`` with (training, fused) and gets the function that joins
(branch output and bias, residual, dropout probability). Each scheme that changes the join puts a module there: it holds
what the scheme needs, its parameters become checkpoint keys below ``self_attn_bda`` and ``mlp_bda``, and the layer's
forward stays Megatron's, with its recompute, offloading and CUDA graphs. Tensors are [s, b, h].
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Join = Callable[[tuple[Tensor, Tensor | None], Tensor, float], Tensor]


class _Weighed(torch.autograd.Function):
    """branch * weight for a weight [1] in fp32 on the device, rounded once as for a Python float: one kernel each way."""

    @staticmethod
    def forward(ctx: Any, branch: Tensor, weight: Tensor) -> Tensor:
        ctx.weight = weight  # no save_for_backward: the next step fills it, and autograd would take that for a mistake
        return torch.mul(branch, weight, out=torch.empty_like(branch))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return torch.mul(gradient, ctx.weight, out=torch.empty_like(gradient)), None


class ResidualJoin(torch.nn.Module):
    """x + w * Dropout(F): Megatron's join, with the weight w of a branch that warms up (1 when it does not)."""

    warmup_steps: float = 0.0
    branch_weight: float | Tensor = 1.0
    """A number; under CUDA graphs a tensor of ``GraphWeights``, which a replay reads again."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self, training: bool, _fused: bool) -> Join:
        """The function Megatron's layer calls; there is no fused kernel for any of these joins."""

        def join(branch_and_bias: tuple[Tensor, Tensor | None], residual: Tensor, dropout: float) -> Tensor:
            branch, bias = branch_and_bias
            branch = self.scaled(branch if bias is None else branch + bias)
            branch = F.dropout(branch, p=dropout, training=training)
            return self.combined(residual, self.weighed(branch).to(residual.dtype))

        return join

    def weighed(self, branch: Tensor) -> Tensor:
        """The branch times its weight."""
        if isinstance(self.branch_weight, Tensor):
            return _Weighed.apply(branch, self.branch_weight)
        return branch if self.branch_weight == 1.0 else branch * self.branch_weight

    def scaled(self, branch: Tensor) -> Tensor:
        """What the scheme does to the branch's output, before dropout."""
        return branch

    def combined(self, residual: Tensor, branch: Tensor) -> Tensor:
        """The new residual stream, in the residual's dtype."""
        return residual + branch


def joins(layer: torch.nn.Module) -> list[ResidualJoin]:
    """The joins below a layer or model: attention's, then the MLP's."""
    return [module for module in layer.modules() if isinstance(module, ResidualJoin)]


def start_warmup(layer: torch.nn.Module, layer_number: int, steps: int) -> None:
    """Progressive residual warm-up (ProRes, arXiv 2603.05369, linear schedule): block l takes l * steps to come in whole.

    RuntimeError unless both branches have a join that can weigh them.
    """
    found = joins(layer)
    if len(found) != 2:
        raise RuntimeError(
            f"layer {layer_number} has {len(found)} residual joins, expected the attention's and the MLP's"
        )
    for join in found:
        join.warmup_steps = float(layer_number * steps)
        join.branch_weight = 0.0


def warming_up(chunks: Iterable[torch.nn.Module]) -> list[ResidualJoin]:
    """The joins whose branches warm up."""
    return [join for chunk in chunks for join in joins(chunk) if join.warmup_steps]


def set_training_step(chunks: Iterable[torch.nn.Module], step: int) -> None:
    """Weigh every branch for a training step; step: how many steps the weights have behind them, resumed ones too.

    There is no state to save: the weight follows Megatron's iteration, so a resumed run continues where it stopped.
    """
    for join in warming_up(chunks):
        join.branch_weight = min(step / join.warmup_steps, 1.0)


class GraphWeights:
    """The weights of joins as tensors, for layers in CUDA graphs: a captured Python number would stay as it was.

    ``set_training_step`` fills all of them at once, a few launches a step however many layers there are, with no copy
    from the host and no wait. To be called outside of what is captured.
    """

    def __init__(self, warming: Sequence[ResidualJoin], device: torch.device) -> None:
        """device: of the layers. The joins read their weights here from now on."""
        self._warmup_steps = torch.tensor([join.warmup_steps for join in warming], dtype=torch.float64, device=device)
        self._step = torch.zeros(1, dtype=torch.float64, device=device)
        self._weights = torch.zeros(len(warming), device=device)
        self._longest = max((join.warmup_steps for join in warming), default=0.0)
        self._over = not warming
        for index, join in enumerate(warming):
            join.branch_weight = self._weights[index : index + 1]

    def set_training_step(self, step: int) -> None:
        """As the function of this name, and to the bit: divided in fp64, rounded to fp32 once."""
        if self._over:
            return
        self._weights.copy_(torch.div(self._step.fill_(step), self._warmup_steps).clamp_(max=1.0))
        self._over = step >= self._longest
