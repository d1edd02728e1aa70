"""How far a block is from the identity: |J - I| / |I|, Frobenius, J the block's Jacobian over a whole sequence.

E |(J - I)^T v|^2 = |J - I|^2 for random v of independent signs (Hutchinson), and |I|^2 is the number of elements, so the
root of the mean over draws of |J^T v - v|^2 / n estimates it, one vector-Jacobian product a draw.
"""

import math

import torch

from megatron_cod.analysis.depth.estimate import Estimate, estimate
from megatron_cod.analysis.depth.traced import Trace, TracedModel


def squared_distances(
    model: TracedModel, trace: Trace, number: int, draws: int, generator: torch.Generator
) -> list[float]:
    """``draws`` samples of |J^T v - v|^2 / n for block ``number`` at its own input."""
    samples = []
    with torch.enable_grad():
        stream = trace.streams[number - 1].detach().clone().requires_grad_()
        after = model.block(trace, number, stream)
        for draw in range(draws):
            signs = torch.randint(0, 2, stream.shape, generator=generator).to(stream) * 2 - 1
            (product,) = torch.autograd.grad(after, stream, signs, retain_graph=draw < draws - 1)
            samples.append(float((product - signs).float().square().mean()))
    return samples


def distance(samples: list[float]) -> Estimate:
    """The root of the mean of squared distances, with the error that the mean's has on it (delta method)."""
    squared = estimate(samples)
    root = math.sqrt(squared.mean)
    return Estimate(root, squared.error / (2 * root) if root else 0.0)
