"""Peak device memory of one arm while others are in memory too."""

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass
class PeakMemory:
    """Bytes an arm would need alone: what it keeps, and the most that its steps need beyond that.

    Measured on GPUs only; on CPUs the allocator has no such count, and ``total`` is None.
    """

    kept: int = 0
    in_step: int = 0

    def building[T](self, build: Callable[[], T]) -> T:
        """Count what ``build`` leaves in memory."""
        before = _allocated()
        made = build()
        self.kept = _allocated() - before
        return made

    def stepping[T](self, step: Callable[[], T]) -> T:
        """Count what ``step`` needs for a while. What it leaves (the optimizer's first step) is kept from then on."""
        if not torch.cuda.is_available():
            return step()
        before = _allocated()
        torch.cuda.reset_peak_memory_stats()
        result = step()
        self.in_step = max(self.in_step, torch.cuda.max_memory_allocated() - before)
        self.kept += _allocated() - before
        return result

    @property
    def total(self) -> int | None:
        """Bytes, or None without a GPU."""
        return self.kept + self.in_step if torch.cuda.is_available() else None


def _allocated() -> int:
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
