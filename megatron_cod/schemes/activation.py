"""The gate of an MLP: silu (``--swiglu``), or with ``--geglu`` gelu in its tanh form, which Megatron has no flag for."""

from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn import functional as F

from megatron_cod.errors import UserError

GELU_TANH = "gelu_tanh"
"""Name under which a checkpoint records it."""


def gelu_tanh(x: Tensor) -> Tensor:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    return F.gelu(x, approximate="tanh")


def gate_with_gelu(config: TransformerConfig) -> None:
    """Set it in place of silu. UserError where there is no silu, and for kernels that are of silu alone."""
    if not config.gated_linear_unit or config.activation_func is not F.silu:
        raise UserError("--geglu is another gate for the MLPs of --swiglu; give both")
    for name in ("use_te_activation_func", "use_transformer_engine_op_fuser"):
        if getattr(config, name):
            raise UserError(f"--{name.replace('_', '-')} does not know the gate of --geglu; omit one")
    config.activation_func = gelu_tanh
    config.bias_activation_fusion = False
