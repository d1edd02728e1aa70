"""The residual stream after each block: its variance, and how much of it is a few massive activations.

The variance over channels, mean over tokens, is the paper's figure (arXiv 2502.05795, figure 1). The first token of a
sequence without a BOS is an attention sink in most trained models: its variance may be a thousand times that of the
others and swamps a mean. So the mean is given with and without it, and the median as well.
"""

from collections import defaultdict
from dataclasses import dataclass, field

from torch import Tensor

from megatron_cod.analysis.depth.estimate import Estimate, estimate
from megatron_cod.analysis.depth.traced import Trace


@dataclass(frozen=True)
class StreamRow:
    """The stream before block 1 (``after`` = 0) or after a block."""

    after: int
    variance: Estimate
    variance_without_first: Estimate
    median_variance: float
    """Median over tokens, mean over sequences."""
    largest: float
    """Largest absolute value of any channel of any token."""
    largest_over_median: float
    """The same over the median absolute value (Sun et al., arXiv 2402.17762: massive from 1000 on)."""
    largest_over_median_without_first: float


@dataclass
class StreamStatistics:
    """Adds up over batches; ``rows`` at the end."""

    _samples: dict[tuple[int, str], list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, trace: Trace) -> None:
        """One batch of sequences of at least 2 tokens."""
        for after, stream in enumerate(trace.streams):
            wide = stream.detach().float()
            variance = wide.var(dim=-1, unbiased=False)  # [b, s]
            self._extend(after, "variance", variance.mean(dim=1))
            self._extend(after, "without first", variance[:, 1:].mean(dim=1))
            self._extend(after, "median", variance.median(dim=1).values)
            size = wide.abs()
            self._extend(after, "largest", size.amax(dim=(1, 2)))
            self._extend(after, "largest without first", size[:, 1:].amax(dim=(1, 2)))
            self._extend(after, "median size", size.flatten(1).median(dim=1).values)

    def _extend(self, after: int, name: str, values: Tensor) -> None:
        self._samples[after, name] += values.double().tolist()

    def rows(self) -> list[StreamRow]:
        """A row for each point of the stream, in depth order."""
        points = sorted({after for after, _ in self._samples})
        return [self._row(after) for after in points]

    def _row(self, after: int) -> StreamRow:
        def held(name: str) -> list[float]:
            return self._samples[after, name]

        typical = estimate(held("median size")).mean or float("nan")
        return StreamRow(
            after=after,
            variance=estimate(held("variance")),
            variance_without_first=estimate(held("without first")),
            median_variance=estimate(held("median")).mean,
            largest=max(held("largest")),
            largest_over_median=max(held("largest")) / typical,
            largest_over_median_without_first=max(held("largest without first")) / typical,
        )
