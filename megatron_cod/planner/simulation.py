"""The pipeline pass by pass: when each stage does what ``estimate.schedule`` lists, each pass with its own time."""

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_cod.estimate.schedule import Task, stage_tasks


@dataclass(frozen=True)
class Passes:
    """Seconds of one micro-batch through a virtual stage."""

    forward: float
    backward: float


@dataclass(frozen=True)
class Pipeline:
    """A step's passes. stages[stage][chunk]; group: as of ``stage_tasks``."""

    stages: Sequence[Sequence[Passes]]
    microbatches: int
    group: int | None = None

    @property
    def chunks(self) -> int:
        return len(self.stages[0])

    def busy(self, stage: int) -> float:
        """Seconds in which a stage computes."""
        return self.microbatches * sum(one.forward + one.backward for one in self.stages[stage])


class _Run:
    """Clocks of all stages, and when each pass ended, by (depth, micro-batch)."""

    def __init__(self, pipeline: Pipeline, transfer: float, blocking: bool) -> None:
        self.pipeline, self.transfer, self.blocking = pipeline, transfer, blocking
        self.count = len(pipeline.stages)
        self.last = self.count * pipeline.chunks - 1
        self.clock = [0.0] * self.count
        self.forward: dict[tuple[int, int], float] = {}
        self.backward: dict[tuple[int, int], float] = {}

    def ready(self, task: Task, depth: int) -> float | None:
        """When what the pass needs is here; None: not known yet."""
        if task.forward:
            if depth == 0:
                return 0.0
            before = self.forward.get((depth - 1, task.microbatch))
        elif depth == self.last:
            return self.forward.get((depth, task.microbatch))
        else:
            before = self.backward.get((depth + 1, task.microbatch))
        return None if before is None else before + self.transfer

    def does(self, stage: int, task: Task) -> bool:
        """Do the pass, if it can start."""
        depth = task.chunk * self.count + stage
        ready = self.ready(task, depth)
        if ready is None:
            return False
        passes = self.pipeline.stages[stage][task.chunk]
        end = max(self.clock[stage], ready) + (passes.forward if task.forward else passes.backward)
        (self.forward if task.forward else self.backward)[depth, task.microbatch] = end
        sends = depth < self.last if task.forward else depth > 0
        self.clock[stage] = end + (self.transfer if self.blocking and sends else 0.0)
        return True


def finish_times(pipeline: Pipeline, transfer: float = 0.0, blocking: bool = False) -> list[float]:
    """When each stage has made its last pass.

    transfer: seconds from a stage to the next one. blocking: the sender computes nothing meanwhile.
    """
    run = _Run(pipeline, transfer, blocking)
    tasks = [
        stage_tasks(run.count, stage, pipeline.chunks, pipeline.microbatches, pipeline.group)
        for stage in range(run.count)
    ]
    made = [0] * run.count
    while any(place < len(tasks[stage]) for stage, place in enumerate(made)):
        before = sum(made)
        for stage in range(run.count):
            while made[stage] < len(tasks[stage]) and run.does(stage, tasks[stage][made[stage]]):
                made[stage] += 1
        assert sum(made) > before, "the pipeline is stuck"
    return run.clock
