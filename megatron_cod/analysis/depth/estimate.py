"""A mean over sequences with its standard error: what most figures here are."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """Mean and standard error of the mean; the error of a single sample is infinite."""

    mean: float
    error: float

    def as_dict(self) -> dict[str, float | None]:
        """For JSON, which knows neither infinity nor NaN."""
        return {name: value if math.isfinite(value) else None for name, value in vars(self).items()}


def estimate(samples: Iterable[float] | Tensor) -> Estimate:
    """Estimate from independent samples; ValueError for none."""
    values = torch.as_tensor(samples if isinstance(samples, Tensor) else list(samples), dtype=torch.float64).flatten()
    if not values.numel():
        raise ValueError("no sample to take a mean of")
    error = float(values.std() / math.sqrt(values.numel())) if values.numel() > 1 else math.inf
    return Estimate(float(values.mean()), error)
