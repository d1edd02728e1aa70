"""Every metric on one model and one budget of tokens."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from megatron_cod.analysis.depth.angles import AngularDistance
from megatron_cod.analysis.depth.block_removal import Surgery
from megatron_cod.analysis.depth.estimate import estimate
from megatron_cod.analysis.depth.jacobian import distance, squared_distances
from megatron_cod.analysis.depth.stream import StreamStatistics
from megatron_cod.analysis.depth.traced import Trace, TracedModel
from megatron_cod.analysis.depth.usefulness import check_tokens, groups_of_blocks, is_useful, losses_with_linear
from megatron_cod.analysis.metrics import perplexity
from megatron_cod.errors import UserError

METRICS = ("stream", "angle", "lens", "surgery", "jacobian", "usefulness")
"""Cheapest first. ``surgery`` is removal, permutation and causal score."""


@dataclass(frozen=True)
class Budget:
    """Tokens for each purpose, in batches of [b, s]."""

    evaluation: Sequence[Tensor]
    """What all metrics are measured on."""
    fit: Sequence[Tensor] = ()
    """What linear replacements are fitted on; none of it is in ``evaluation``."""
    jacobian_draws: int = 4
    """Random vectors for each block and batch of ``evaluation``."""
    seed: int = 0
    max_bytes: float = 4e9
    """Of the sums that linear replacements are fitted from: blocks are fitted in groups, each with a pass of its own."""

    def groups(self, model: TracedModel) -> list[range]:
        """Blocks that are fitted at once. UserError for too few tokens, or too little memory, to fit one."""
        with torch.no_grad():
            hidden = model.trace((self.fit or self.evaluation)[0][:1, :2]).streams[0].shape[-1]
        check_tokens(sum(batch.numel() for batch in self.fit), hidden)
        return groups_of_blocks(model.depth, hidden, self.max_bytes)


Step = Callable[[str, int], None]
"""Called for each piece of work: what it was, and the tokens that went through the whole model for it."""


def measure(
    model: TracedModel, budget: Budget, metrics: Collection[str], step: Step = lambda *_: None
) -> dict[str, Any]:
    """Results for JSON. UserError for NaN streams (naming the block), and for too few tokens to fit on."""
    found: dict[str, Any] = {"depth": model.depth, "tokens": sum(batch.numel() for batch in budget.evaluation)}
    stream, angle, surgery = StreamStatistics(), AngularDistance(), Surgery(model.depth)
    losses: list[float] = []
    lens: list[list[float]] = [[] for _ in range(model.depth + 1)]
    jacobians: list[list[float]] = [[] for _ in range(model.depth)]
    generator = torch.Generator().manual_seed(budget.seed)
    with torch.no_grad():
        for batch in budget.evaluation:
            trace = traced(model, batch)
            losses += model.losses(trace).tolist()
            step("forward", batch.numel())
            if "stream" in metrics:
                stream.add(trace)
            if "angle" in metrics:
                angle.add(trace)
            if "lens" in metrics:
                for after, one in enumerate(trace.streams):
                    lens[after] += model.losses(trace, one).tolist()
                step("logit lens", batch.numel())
            for number in range(1, model.depth + 1):
                if "surgery" in metrics:
                    surgery.add(model, trace, number)
                    step("removal, permutation, causal score", batch.numel())
                if "jacobian" in metrics:
                    draws = squared_distances(model, trace, number, budget.jacobian_draws, generator)
                    jacobians[number - 1] += draws
                    step("Jacobian", batch.numel())
    whole = estimate(losses)
    found |= {"loss": whole.as_dict(), "perplexity": perplexity(whole.mean)}
    if "stream" in metrics:
        found["stream"] = [_plain(asdict(row)) for row in stream.rows()]
    if "angle" in metrics:
        for which in ("last token", "token mean"):
            mean, error = angle.distance(which)
            found[f"angle, {which}"] = {"mean": mean.tolist(), "error": _finite(error.tolist())}
    if "lens" in metrics:
        found["logit lens"] = [estimate(one).as_dict() for one in lens]
    if "surgery" in metrics:
        found["removal"] = [one.as_dict() for one in surgery.removal()]
        found["permutation"] = [one.as_dict() for one in surgery.permutation()]
        found["causal"] = surgery.causal()
    if "jacobian" in metrics:
        found["jacobian"] = [distance(samples).as_dict() for samples in jacobians]
    if "usefulness" in metrics:
        with torch.no_grad():
            trace_of = partial(traced, model)
            each = losses_with_linear(model, budget.fit, budget.evaluation, budget.groups(model), trace_of, step)
            means = [estimate(one).mean for one in each]
        useful = [is_useful(whole.mean, one) for one in means]
        found["usefulness"] = {"loss": means, "useful": useful, "share": sum(useful) / len(useful)}
    return found


def traced(model: TracedModel, batch: Tensor) -> Trace:
    """A trace whose streams are all finite; UserError naming the first block that made another value."""
    trace = model.trace(batch)
    for after, stream in enumerate(trace.streams):
        if not torch.isfinite(stream).all():
            where = f"block {after}" if after else "the embedding"
            raise UserError(f"the residual stream is not finite from {where} on: NaN or infinite weights?")
    return trace


def _plain(value: Any) -> Any:
    """Infinite errors, of a single sequence, as None."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return _finite(value)


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return value if not isinstance(value, float) or value - value == 0 else None
