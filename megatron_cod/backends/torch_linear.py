"""Megatron's linears on the torch backend: without tensor parallelism a plain product, whose backward is torch's own.

Megatron's is an autograd function in Python also where there is nothing to send: on the host, at small sizes, that is a
fifth of a layer's time. All else, checkpoints and initialisation too, stays Megatron's.
"""

from typing import Any

import torch.nn.functional as F
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from torch import Tensor

from megatron_cod.backends.host_blocks import is_for_host

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
"""Where torch keeps the hooks of a module."""


def _alone(linear: Any) -> bool:
    """Whether nothing but the product is to be done: no other rank takes part, and nothing is put off or offloaded."""
    config = linear.config
    return (
        linear.tp_group.size() == 1
        and linear.gtp_remat_size == 1
        and not linear.gradient_accumulation_fusion
        and not linear.explicit_expert_comm
        and not config.defer_embedding_wgrad_compute
        and config._cpu_offloading_context is None
    )


def are_plain_products(x: Tensor, *linears: Any) -> bool:
    """Whether ``x @ weight.t()`` on the host is what calling each of these linears would give.

    So none has a bias, other ranks, or hooks: with them Megatron's DDP waits for gathered parameters, and others read or
    change activations. x [s, b, h].
    """
    if any(type(one) not in (TorchColumnParallelLinear, TorchRowParallelLinear) for one in linears):
        return False
    if not is_for_host(x, *(one.weight for one in linears)):
        return False
    return all(one.bias is None and _alone(one) and not any(getattr(one, name) for name in _HOOKS) for one in linears)


class TorchColumnParallelLinear(ColumnParallelLinear):
    """Y = X A^T + b, A split by rows over tensor parallel ranks."""

    def forward(self, input_: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """input_ [s, b, h] -> ([s, b, h'], the bias if adding it is left to the caller)."""
        if args or kwargs or not _alone(self):
            return super().forward(input_, *args, **kwargs)
        if self.skip_bias_add:
            return F.linear(input_, self.weight), self.bias
        return F.linear(input_, self.weight, self.bias), None


class TorchRowParallelLinear(RowParallelLinear):
    """Y = X A^T + b, A split by columns over tensor parallel ranks."""

    def forward(self, input_: Tensor) -> tuple[Tensor, Tensor | None]:
        """input_ [s, b, h] -> ([s, b, h'], the bias if adding it is left to the caller)."""
        if not _alone(self):
            return super().forward(input_)
        output = F.linear(input_, self.weight)  # Megatron adds the bias after the product here
        if self.skip_bias_add:
            return output, self.bias
        return (output if self.bias is None else output + self.bias), None


TORCH_LINEARS: dict[Any, type] = {
    ColumnParallelLinear: TorchColumnParallelLinear,
    RowParallelLinear: TorchRowParallelLinear,
}
