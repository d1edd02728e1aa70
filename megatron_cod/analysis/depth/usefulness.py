"""Usefulness: could a block as well be linear? (arXiv 2603.15389)

Each block is replaced by the affine map of its input that fits its output best by least squares. It is useful when the
loss on other tokens than those it was fitted on rises by more than a tenth. Usefulness of a model is its share of useful
blocks.
"""

import torch
from torch import Tensor

from megatron_cod.analysis.depth.traced import Trace, TracedModel
from megatron_cod.errors import UserError

THRESHOLD = 0.10
_RIDGE = 1e-6
"""Of the mean variance of the inputs: keeps channels that never move from making the system singular."""


class LinearFit:
    """Least squares of a block's output on its input, from sums over tokens in float64: [h + 1, h + 1] and [h + 1, h]."""

    def __init__(self) -> None:
        self._gram: Tensor | None = None
        self._cross: Tensor | None = None
        self.tokens = 0

    def add(self, stream: Tensor, after: Tensor) -> None:
        """Streams [b, s, h] before and after the block."""
        x = stream.detach().flatten(0, 1).double()
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        y = (after - stream).detach().flatten(0, 1).double()
        gram, cross = x.t() @ x, x.t() @ y
        self._gram = gram if self._gram is None else self._gram + gram
        self._cross = cross if self._cross is None else self._cross + cross
        self.tokens += x.shape[0]

    def solve(self) -> Tensor:
        """The map of the update, [h + 1, h]: the stream after is x + [x, 1] @ map.

        UserError for fewer tokens than twice the unknowns of a channel: it would fit noise.
        """
        if self._gram is None or self._cross is None or self.tokens < 2 * self._gram.shape[0]:
            needed = 2 * self._gram.shape[0] if self._gram is not None else 1
            raise UserError(f"{self.tokens} tokens are too few to fit a linear map, at least {needed} are needed")
        ridge = _RIDGE * self._gram.diagonal()[:-1].mean()
        eye = torch.eye(self._gram.shape[0], dtype=self._gram.dtype, device=self._gram.device)
        return torch.linalg.solve(self._gram + ridge * eye, self._cross)


def loss_with_linear(model: TracedModel, trace: Trace, number: int, fitted: Tensor) -> Tensor:
    """Loss of each sequence, [b], with block ``number`` replaced by a fitted map."""
    stream = trace.streams[number - 1]
    wide = stream.double()
    update = wide @ fitted[:-1] + fitted[-1]
    after = (wide + update).to(stream.dtype)
    return model.losses(trace, model.through(trace, after, range(number + 1, model.depth + 1)))


def is_useful(whole: float, replaced: float) -> bool:
    """Whether the loss rises by more than a tenth."""
    return replaced > (1 + THRESHOLD) * whole
