"""A bar with tokens/s and the time left, over all passes of a measurement."""

from collections.abc import Collection
from typing import Any, Self

from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from megatron_cod.analysis.depth.measure import Budget


class Progress:
    """Counts tokens of every pass; passes cost unlike amounts, so the time left is rough at first."""

    def __init__(self, budget: Budget, depth: int, metrics: Collection[str]) -> None:
        evaluated = sum(batch.numel() for batch in budget.evaluation)
        per_block = len({"surgery", "jacobian", "usefulness"} & set(metrics))
        fitted = sum(batch.numel() for batch in budget.fit) if "usefulness" in metrics else 0
        self._total = evaluated * (1 + ("lens" in metrics) + depth * per_block) + fitted
        self._bar = Bar(
            TextColumn("{task.description:<36}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%  {task.fields[rate]}"),
            TimeRemainingColumn(),
        )

    def __enter__(self) -> Self:
        self._bar.__enter__()
        self._task = self._bar.add_task("", total=self._total, rate="")
        return self

    def __exit__(self, *rest: Any) -> None:
        self._bar.__exit__(*rest)

    def step(self, what: str, tokens: int) -> None:
        """One pass of ``tokens`` is done."""
        speed = self._bar.tasks[self._task].speed
        rate = f"{speed:,.0f} tokens/s" if speed else ""
        self._bar.update(self._task, advance=tokens, description=what, rate=rate)
