"""What the loss costs when a block is omitted, or changes places with the next, and how later blocks feel it.

Removal is the paper's (arXiv 2502.05795, figure 4). A block keeps its own index and factor whatever is taken from around
it, since the blocks that are run are the model's own. Permutation and causal scores follow DepthBench (arXiv 2609.32534)
and arXiv 2603.15389.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from megatron_cod.analysis.depth.estimate import Estimate, estimate
from megatron_cod.analysis.depth.traced import Trace, TracedModel


def loss_without(model: TracedModel, trace: Trace, number: int) -> Tensor:
    """Loss of each sequence, [b], with block ``number`` omitted."""
    stream = trace.streams[number - 1]
    return model.losses(trace, model.through(trace, stream, range(number + 1, model.depth + 1)))


def loss_swapped(model: TracedModel, trace: Trace, number: int) -> Tensor:
    """Loss of each sequence, [b], with blocks ``number`` and ``number + 1`` in each other's place."""
    order = [number + 1, number, *range(number + 2, model.depth + 1)]
    return model.losses(trace, model.through(trace, trace.streams[number - 1], order))


def causal_effects(model: TracedModel, trace: Trace, number: int) -> Tensor:
    """How much later updates change when block ``number`` is skipped: [L - number], |D' - D| / |D| for each later block.

    D is what a block adds to the stream, its norm taken over channels, and the ratio a mean over tokens.
    """
    stream, effects = trace.streams[number - 1], []
    for later in range(number + 1, model.depth + 1):
        after = model.block(trace, later, stream)
        usual = trace.streams[later] - trace.streams[later - 1]
        change = (after - stream - usual).float().norm(dim=-1)
        effects.append((change / usual.float().norm(dim=-1).clamp_min(1e-30)).mean())
        stream = after
    return torch.stack(effects) if effects else torch.zeros(0)


@dataclass
class Surgery:
    """Adds up over batches. Losses are differences to the whole model's, in nats a token, paired by sequence."""

    depth: int
    whole: list[float] = field(default_factory=list)
    removed: dict[int, list[float]] = field(default_factory=dict)
    swapped: dict[int, list[float]] = field(default_factory=dict)
    effects: dict[int, list[list[float]]] = field(default_factory=dict)

    def add(self, model: TracedModel, trace: Trace, number: int) -> None:
        """One block on one batch; block 1 also records the whole model's loss."""
        whole = model.losses(trace)
        if number == 1:
            self.whole += whole.tolist()
        self.removed.setdefault(number, []).extend((loss_without(model, trace, number) - whole).tolist())
        if number < self.depth:
            self.swapped.setdefault(number, []).extend((loss_swapped(model, trace, number) - whole).tolist())
            self.effects.setdefault(number, []).append(causal_effects(model, trace, number).tolist())

    def loss(self) -> Estimate:
        """The whole model's."""
        return estimate(self.whole)

    def removal(self) -> list[Estimate]:
        """Rise of the loss without block 1, ..., L."""
        return [estimate(self.removed[number]) for number in range(1, self.depth + 1)]

    def permutation(self) -> list[Estimate]:
        """Rise of the loss with blocks l and l + 1 swapped, l = 1 .. L - 1."""
        return [estimate(self.swapped[number]) for number in range(1, self.depth)]

    def causal(self) -> list[float]:
        """Mean effect of skipping block l = 1 .. L - 1 on all later blocks."""
        means = []
        for number in range(1, self.depth):
            batches = torch.tensor(self.effects[number])
            means.append(float(batches.mean()))
        return means
