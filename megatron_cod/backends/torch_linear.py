"""Megatron's linears on the torch backend: without tensor parallelism a plain product, whose backward is torch's own.

Megatron's is an autograd function in Python also where there is nothing to send: on the host, at small sizes, that is a
fifth of a layer's time. All else, checkpoints and initialisation too, stays Megatron's.
"""

from typing import Any

import torch.nn.functional as F
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from torch import Tensor


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
