"""Norms under test, and their formula."""

import torch

H, EPS = 48, 1e-6


def formula(kind: str, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, s: float) -> torch.Tensor:
    """s * (gamma * normalised + beta), in float64."""
    x = x.double()
    if kind == "LayerNorm":
        x = (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + EPS)
        return s * (x * weight.double() + bias.double())
    return s * (x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * weight.double())
