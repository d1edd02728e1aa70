"""How far a study is."""

from __future__ import annotations

import statistics

from megatron_cod.common.amounts import format_duration
from megatron_cod.study.directory import StudyDirectory
from megatron_cod.study.scheduler import best_of, finals_of, outlook, runnable


def status_lines(directory: StudyDirectory) -> list[str]:
    """Done, running, failed, how long is left, and the tuned rates."""
    study, results = directory.study, directory.results()
    known, left = runnable(study, results), outlook(study, results)
    failed, running = directory.failures(known), directory.running(known)
    diverged = [job for job, result in results.items() if result.diverged]
    lines = [
        f"{len(results)} runs done ({len(diverged)} diverged), {len(running)} running, {len(failed)} failed, at least "
        f"{left.total} left{_time_left(directory)}"
    ]
    lines += [f"running: {job.name}" for job in running]
    lines += [f"failed: {job.name}: {line}" for job, line in failed.items()]
    lines += [f"diverged: {job.name}: {results[job].diverged}" for job in diverged]
    for shape in study.shapes:
        for arm in study.arms:
            best = best_of(study, results, shape, arm)
            if best is not None:
                edge = f" ({best.edge})" if best.edge else ""
                done = len(finals_of(study, results, shape, arm))
                lines.append(f"{shape.name}, {arm}: rate {best.rate:g}{edge}, {done} of {len(study.seeds)} final runs")
    return lines


def _time_left(directory: StudyDirectory) -> str:
    """From the runs that are done, where each shape that is left has some."""
    results, left = directory.results(), outlook(directory.study, directory.results()).left
    total = 0.0
    for shape, number in left.items():
        # Imported runs have no time: it would be that of another machine.
        took = [seconds for job in results if job.shape == shape and (seconds := directory.seconds(job)) is not None]
        if number and not took:
            return ""
        total += number * statistics.median(took) if number else 0.0
    return f", {format_duration(total)} of runs one after another"
