"""Where our own code runs in Megatron's loop, which has no callbacks: in the forward step that it calls."""

from collections.abc import Callable
from typing import Any


class Steps:
    """Tells others when forward steps and training steps begin on this rank, each in the order given."""

    def __init__(self, args: Any) -> None:
        """args: Megatron's, which say what training step is at hand."""
        self._args = args
        self._iteration: int | None = None
        self._begun = False
        self.first: list[Callable[[], None]] = []
        """Called once, when the first forward step begins."""
        self.each_step: list[Callable[[], None]] = []
        """Called when the first forward step of a training step begins; what came before it is done and saved."""
        self.each_forward: list[Callable[[], None]] = []
        """Called for every micro-batch, of training and validation."""

    def not_begun(self) -> bool:
        """Whether no forward step was made yet."""
        return not self._begun

    def watch(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """The same forward step, telling those who want to know."""

        def watched(*rest: Any) -> Any:
            if not self._begun:
                self._begun = True
                for call in self.first:
                    call()
            iteration = getattr(self._args, "curr_iteration", None)
            if iteration != self._iteration:
                self._iteration = iteration
                for call in self.each_step:
                    call()
            for call in self.each_forward:
                call()
            return step(*rest)

        return watched
