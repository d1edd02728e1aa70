"""Tokens/s and the time left, over all passes of a measurement."""

from collections.abc import Collection
from typing import Any, Self

from megatron_cod.analysis.depth.measure import Budget
from megatron_cod.analysis.depth.traced import TracedModel
from megatron_cod.common import progress


class Progress:
    """Counts tokens of every pass; passes cost unlike amounts, so the time left is rough at first."""

    def __init__(self, budget: Budget, model: TracedModel, metrics: Collection[str]) -> None:
        evaluated = sum(batch.numel() for batch in budget.evaluation)
        per_block = len({"surgery", "jacobian", "usefulness"} & set(metrics))
        groups = len(budget.groups(model)) if "usefulness" in metrics else 0
        fitted = sum(batch.numel() for batch in budget.fit)
        passes = 1 + ("lens" in metrics) + model.depth * per_block + groups
        self._pace = progress.Pace(evaluated * passes + fitted * groups)
        self._pass = ""

    def __enter__(self) -> Self:
        self._progress = progress.Progress(self._pace, lambda pace: f"{pace.rate():,.0f} tokens/s  {self._pass}")
        return self

    def __exit__(self, *_: Any) -> None:
        self._progress.close()

    def step(self, what: str, tokens: int) -> None:
        """One pass of ``tokens`` is done."""
        self._pass = what
        self._progress.add(tokens)
