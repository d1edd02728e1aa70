"""Bubble and micro-batches in flight, against a simulation of the pipeline written for tests alone."""

import pytest
from megatron.core.pipeline_parallel import schedules

from megatron_cod.estimate.schedule import Task, bubble_ratio, bubble_share, peak_in_flight, stage_tasks
from tests.rehearsal.simulated import BACKWARD, FORWARD, INTERLEAVED, PIPELINES, simulate


@pytest.mark.parametrize(("stages", "chunks", "microbatches"), PIPELINES + INTERLEAVED)
def test_the_bubble_is_the_time_a_simulated_pipeline_waits(stages, chunks, microbatches):
    span, _ = simulate(stages, chunks, microbatches)
    busy = microbatches * chunks * (FORWARD + BACKWARD)
    assert (span - busy) / busy == pytest.approx(bubble_ratio(stages, chunks, microbatches), abs=1e-12)
    assert (span - busy) / span == pytest.approx(bubble_share(stages, chunks, microbatches), abs=1e-12)


@pytest.mark.parametrize(("stages", "chunks", "microbatches"), PIPELINES + INTERLEAVED)
def test_in_flight_is_that_of_the_simulation(stages, chunks, microbatches):
    _, peak = simulate(stages, chunks, microbatches)
    tasks = [stage_tasks(stages, stage, chunks, microbatches) for stage in range(stages)]
    assert [peak_in_flight(task, [1.0] * chunks)[0] for task in tasks] == peak


@pytest.mark.parametrize(("stages", "chunks", "microbatches"), INTERLEAVED)
def test_the_order_is_megatrons_table(stages, chunks, microbatches):
    table = schedules.get_schedule_table(microbatches, chunks, stages)
    tasks = stage_tasks(stages, 0, chunks, microbatches)
    assert [(task.microbatch, task.chunk) for task in tasks if task.forward] == table
    assert sorted((t.microbatch, t.chunk) for t in tasks if not t.forward) == sorted(table)


def test_the_peak_counts_what_chunks_really_hold():
    """Two micro-batches of a heavy chunk at once, a light one between them."""
    tasks = [
        Task(True, 0, 0),
        Task(True, 1, 0),
        Task(False, 0, 0),
        Task(True, 0, 1),
        Task(False, 0, 1),
        Task(False, 1, 0),
    ]
    assert peak_in_flight(tasks, [10.0, 1.0]) == (2, 20.0, (2, 0))
