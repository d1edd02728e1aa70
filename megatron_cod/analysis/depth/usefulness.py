"""Usefulness: could a block as well be linear? (arXiv 2603.15389)

Each block is replaced by the affine map of its input that fits its output best by least squares. It is useful when the
loss on other tokens than those it was fitted on rises by more than a tenth. Usefulness of a model is its share of useful
blocks.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from megatron_cod.analysis.depth.traced import Trace, TracedModel
from megatron_cod.errors import UserError

THRESHOLD = 0.10
_RIDGE = 1e-6
"""Of the mean variance of the inputs: keeps channels that never move from making the system singular."""


_SUMS, _SOLVING = 16, 24
"""Bytes of a block's sums, and of solving for one map beside them, by the square of the hidden size."""


def groups_of_blocks(depth: int, hidden: int, most_bytes: float) -> list[range]:
    """Blocks 1 to ``depth`` in groups whose sums fit into ``most_bytes``.

    UserError where one block does not, with what it takes.
    """
    at_once = int((most_bytes / hidden**2 - _SOLVING) // _SUMS)
    if at_once < 1:
        least = (_SUMS + _SOLVING) * hidden**2 / 1e9
        raise UserError(
            f"fitting one block of hidden size {hidden} takes {least:.2f} GB: give --max-memory at least that, or omit "
            "usefulness from --metrics"
        )
    return [range(first, min(first + at_once, depth + 1)) for first in range(1, depth + 1, at_once)]


def check_tokens(tokens: int, hidden: int) -> None:
    """UserError for fewer tokens than twice the unknowns of a channel, with which a map would fit noise."""
    needed = 2 * (hidden + 1)
    if tokens < needed:
        raise UserError(
            f"{tokens} tokens are too few to fit a linear map: give --fit-tokens {needed} or more, or omit usefulness "
            "from --metrics"
        )


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
        if self._gram is None or self._cross is None:
            self._gram, self._cross = x.t() @ x, x.t() @ y
        else:
            self._gram.addmm_(x.t(), x)
            self._cross.addmm_(x.t(), y)
        self.tokens += x.shape[0]

    def solve(self) -> Tensor:
        """The map of the update, [h + 1, h]: the stream after is x + [x, 1] @ map. The sums are freed.

        UserError as of ``check_tokens``; RuntimeError where nothing was added.
        """
        if self._gram is None or self._cross is None:
            raise RuntimeError("no tokens were added to this fit")
        check_tokens(self.tokens, self._gram.shape[0] - 1)
        self._gram.diagonal().add_(_RIDGE * self._gram.diagonal()[:-1].mean())
        found = torch.linalg.solve(self._gram, self._cross)
        self._gram = self._cross = None
        return found


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


def losses_with_linear(
    model: TracedModel,
    fit: Sequence[Tensor],
    evaluation: Sequence[Tensor],
    groups: Sequence[range],
    trace: Callable[[Tensor], Trace],
    step: Callable[[str, int], None],
) -> Iterator[list[float]]:
    """For each block the loss of each sequence of ``evaluation`` with the block replaced by its map, fitted on ``fit``.

    groups: blocks that are fitted at once; each group passes over both texts again. step: as ``measure.Step``.
    """
    for blocks in groups:
        fits = {number: LinearFit() for number in blocks}
        for batch in fit:
            seen = trace(batch)
            for number, one in fits.items():
                one.add(seen.streams[number - 1], seen.streams[number])
            step("fitting linear maps", batch.numel())
        maps = {number: one.solve() for number, one in fits.items()}
        losses: dict[int, list[float]] = {number: [] for number in blocks}
        for batch in evaluation:
            seen = trace(batch)
            step("forward", batch.numel())
            for number, one in maps.items():
                losses[number] += loss_with_linear(model, seen, number, one).tolist()
                step("linear replacement", batch.numel())
        yield from losses.values()
