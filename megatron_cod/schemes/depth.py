"""The depth factor 1/sqrt(l), and how a module carries it."""

from typing import Any

import torch

DEPTH_EXPONENT = -0.5
"""The power of l in the depth factor of the paper; every checkpoint records the power it was trained with."""


def depth_factor(layer_number: int, exponent: float = DEPTH_EXPONENT) -> float:
    """LayerNorm Scaling's factor for one block (arXiv 2502.05795, equation 6): 1/sqrt(l).

    layer_number: l, 1-based and counted over the whole model, as in Megatron's ``TransformerLayer.layer_number``.
    exponent: another power of l, for ablations. Raises ValueError for l < 1, which a 0-based or an unset index would give.
    """
    if layer_number < 1:
        raise ValueError(f"layer numbers count from 1 over the whole model, got {layer_number}")
    return layer_number**exponent


def global_layer_number(layer: Any) -> int:
    """l of a built Megatron layer, counted over the whole model, from 1.

    Megatron numbers the layers of multi-token prediction 1, 2, ... of their own: here their numbers continue, L + k, since
    they stand behind the L blocks of the model and read their residual stream.
    """
    number = int(layer.layer_number)
    return number + layer.config.num_layers if getattr(layer, "is_mtp_layer", False) else number


def times(values: torch.Tensor, factor: float | torch.Tensor) -> torch.Tensor:
    """values * factor in the dtype of values, rounded once; factor: a number, or the same in fp32, without dimensions.

    torch multiplies by a number in fp32, but takes a tensor without dimensions to the dtype of the other one first.
    """
    if not isinstance(factor, torch.Tensor):
        return values * factor
    return (values.to(torch.promote_types(values.dtype, factor.dtype)) * factor).to(values.dtype)


class DepthScaled:
    """Mixin of the modules whose output is multiplied by the depth factor of the layer they stand in.

    The factor is a Python float, neither buffer nor parameter: meta-device initialisation, ``to_empty``, dtype
    conversion and checkpoint loading cannot touch it, and no checkpoint key appears. Modules are built without knowing
    their layer, so the layer binds the factor after building them; a forward without one is an error.
    """

    depth_factor: float | None = None
    compiled_factor: torch.Tensor | None = None
    """The same in fp32, without dimensions; only compiled layers have it (``backends/compiled_layers.py``)."""

    def factor_in_graph(self) -> float | torch.Tensor:
        """``bound_factor``, and while torch compiles the tensor: a number would be a constant of each layer's own graph."""
        if torch.compiler.is_compiling() and self.compiled_factor is not None:
            return self.compiled_factor
        return self.bound_factor()

    def bound_factor(self) -> float:
        """The factor; RuntimeError when no layer has bound one, since scaling by 1 would go unnoticed."""
        if self.depth_factor is None:
            raise RuntimeError(f"{type(self).__name__} was never bound to a layer: its depth factor is unknown")
        return self.depth_factor


def depth_scaled_modules(layer: torch.nn.Module) -> list[DepthScaled]:
    """The modules below ``layer`` that carry a depth factor."""
    return [module for module in layer.modules() if isinstance(module, DepthScaled)]


def bind_depth_factor(layer: torch.nn.Module, layer_number: int, factor: float, expected: int = 2) -> None:
    """Give the modules of a block that carry a depth factor theirs; RuntimeError unless there are ``expected`` of them.

    LNS: the attention-input norm and the MLP-input norm ("one factor per block, the same for both").
    """
    carriers = depth_scaled_modules(layer)
    if len(carriers) != expected:
        raise RuntimeError(f"layer {layer_number} has {len(carriers)} depth-scaled modules, expected {expected}")
    for carrier in carriers:
        carrier.depth_factor = factor
