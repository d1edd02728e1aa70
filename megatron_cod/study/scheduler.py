"""Which runs a study needs next, from its results alone: any stop and restart asks for the same."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from megatron_cod.study.jobs import Job
from megatron_cod.study.results import Result
from megatron_cod.study.shapes import Shape
from megatron_cod.study.study_file import Study
from megatron_cod.study.tuner import DIVERGED, Tuned, needed, tuned

Results = Mapping[Job, Result]


def curve_of(study: Study, results: Results, shape: Shape, arm: str) -> dict[float, float]:
    """Rate -> mean loss over the tuning seeds, of the rates at which all of them are done; ``DIVERGED`` where one did."""
    rates = sorted(
        {job.rate for job in results if (job.shape, job.arm) == (shape, arm) and job.seed in study.tuning_seeds}
    )
    found = {}
    for rate in rates:
        runs = [results.get(Job(shape, arm, rate, seed)) for seed in study.tuning_seeds]
        if all(run is not None for run in runs):
            losses = [run.loss for run in runs if run is not None]
            found[rate] = DIVERGED if None in losses else statistics.fmean(loss for loss in losses if loss is not None)
    return found


def best_of(study: Study, results: Results, shape: Shape, arm: str) -> Tuned | None:
    """The tuned rate of an arm; None while its search is not finished, or where every rate diverged."""
    return tuned(curve_of(study, results, shape, arm), study.grid)


def finals_of(study: Study, results: Results, shape: Shape, arm: str) -> dict[int, Result]:
    """Seed -> result of the runs with fresh seeds at the tuned rate, as far as they are done."""
    best = best_of(study, results, shape, arm)
    jobs = [] if best is None else [Job(shape, arm, best.rate, seed) for seed in study.seeds]
    return {job.seed: results[job] for job in jobs if job in results}


def _tuning(study: Study, results: Results, shape: Shape) -> Iterator[Job]:
    """Rate by rate over all arms, so that a part of a study is a fair part."""
    wanted = {arm: needed(curve_of(study, results, shape, arm), study.grid) for arm in study.arms}
    for rate in sorted({rate for rates in wanted.values() for rate in rates}):
        for seed in study.tuning_seeds:
            yield from (Job(shape, arm, rate, seed) for arm in study.arms if rate in wanted[arm])


def _finals(study: Study, results: Results, shape: Shape) -> Iterator[Job]:
    """Seed by seed over all arms whose rate is known."""
    rates = {arm: best_of(study, results, shape, arm) for arm in study.arms}
    for seed in study.seeds:
        for arm, best in rates.items():
            if best is not None:
                yield Job(shape, arm, best.rate, seed)


def runnable(study: Study, results: Results) -> list[Job]:
    """Every run that is known to be needed and not done, in the order in which to run them: tuning of all shapes first."""
    jobs = [job for shape in study.shapes for job in _tuning(study, results, shape)]
    jobs += [job for shape in study.shapes for job in _finals(study, results, shape)]
    return [job for job in jobs if job not in results]


@dataclass(frozen=True)
class Outlook:
    """How many runs a study still takes at least, by shape."""

    left: dict[Shape, int]

    @property
    def total(self) -> int:
        return sum(self.left.values())


def outlook(study: Study, results: Results) -> Outlook:
    """Known runs, and the final runs of arms whose search is not finished; what a grid may grow by is not counted."""
    known = runnable(study, results)
    left = {}
    for shape in study.shapes:
        untuned = [arm for arm in study.arms if needed(curve_of(study, results, shape, arm), study.grid)]
        left[shape] = sum(job.shape == shape for job in known) + len(untuned) * len(study.seeds)
    return Outlook(left)
