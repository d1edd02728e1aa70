"""The depth factor 1/sqrt(l), and how a module carries it."""

import torch

DEPTH_EXPONENT = -0.5
"""The power of l in the depth factor; every checkpoint records it."""


def depth_factor(layer_number: int) -> float:
    """LayerNorm Scaling's factor for one block (arXiv 2502.05795, equation 6): 1/sqrt(l).

    layer_number: l, 1-based and counted over the whole model, as in Megatron's ``TransformerLayer.layer_number``.
    Raises ValueError for l < 1, which a 0-based or an unset index would give.
    """
    if layer_number < 1:
        raise ValueError(f"layer numbers count from 1 over the whole model, got {layer_number}")
    return layer_number**DEPTH_EXPONENT


class DepthScaled:
    """Mixin of the modules whose norm output is multiplied by the depth factor of the layer they stand in.

    The factor is a Python float, neither buffer nor parameter: meta-device initialisation, ``to_empty``, dtype
    conversion and checkpoint loading cannot touch it, and no checkpoint key appears. Norm modules are built without
    knowing their layer, so the layer binds the factor after building them; a forward without one is an error.
    """

    depth_factor: float | None = None

    def bound_factor(self) -> float:
        """The factor; RuntimeError when no layer has bound one, since scaling by 1 would go unnoticed."""
        if self.depth_factor is None:
            raise RuntimeError(f"{type(self).__name__} was never bound to a layer: its depth factor is unknown")
        return self.depth_factor


def depth_scaled_modules(layer: torch.nn.Module) -> list[DepthScaled]:
    """The modules below ``layer`` that carry a depth factor."""
    return [module for module in layer.modules() if isinstance(module, DepthScaled)]
