"""Angular distance d(l, n) between the stream before block l and n blocks later: arccos(cosine) / pi, raw.

Gromov et al., arXiv 2403.17887, equation 2, as the paper uses it (arXiv 2502.05795, figure 2) on the last token, and here
also as a mean over all tokens. 0 is the same direction, 0.5 orthogonal, 1 opposite. Nothing is clipped or normalised by
row.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from megatron_cod.analysis.depth.traced import Trace

_TOKENS = 256
"""Tokens whose L + 1 by L + 1 cosines are held at a time."""


def angular_distances(streams: Tensor) -> Tensor:
    """[n, points, h] -> arccos of every pair of points of one token, over pi: [n, points, points].

    The cosine of nearly parallel streams loses half its digits in fp32, hence float64.
    """
    wide = streams.double()
    unit = wide / wide.norm(dim=-1, keepdim=True)
    return torch.acos((unit @ unit.transpose(1, 2)).clamp(-1.0, 1.0)) / math.pi


@dataclass
class AngularDistance:
    """Adds up over batches: [points, points] sums over sequences, and of squares for the standard error."""

    _sums: dict[str, Tensor] = field(default_factory=dict)
    _squares: dict[str, Tensor] = field(default_factory=dict)
    _sequences: int = 0

    def add(self, trace: Trace) -> None:
        """One batch."""
        stacked = torch.stack([stream.detach() for stream in trace.streams], dim=2)  # [b, s, L + 1, h]
        for sequence in stacked:
            parts = [angular_distances(part) for part in sequence.split(_TOKENS)]
            over_tokens = sum(part.sum(dim=0) for part in parts) / sequence.shape[0]
            for name, value in {"last token": parts[-1][-1], "token mean": over_tokens}.items():
                value = value.cpu()
                self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value
                self._squares[name] = self._squares.get(name, torch.zeros_like(value)) + value.square()
        self._sequences += stacked.shape[0]

    def distance(self, which: str = "last token") -> tuple[Tensor, Tensor]:
        """Mean and standard error over sequences, [L + 1, L + 1] by points of the stream: [l - 1, l - 1 + n] is d(l, n).

        which: "last token" or "token mean". The error is NaN for one sequence.
        """
        count = self._sequences
        mean = self._sums[which] / count
        spread = (self._squares[which] / count - mean.square()).clamp(min=0.0)
        return mean, (spread / (count - 1)).sqrt() if count > 1 else torch.full_like(mean, math.nan)
