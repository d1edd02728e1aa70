"""Constructed studies with a known answer: losses that are a parabola in log(rate), and seeds that shift them."""

import math
from pathlib import Path

import yaml

from megatron_cod.study.jobs import Job
from megatron_cod.study.results import Result
from megatron_cod.study.scheduler import runnable
from megatron_cod.study.study_file import Study, read_study
from tests.conftest import ROOT

CONTENT = {
    "question": "Which arm is better?",
    "recipe": str(ROOT / "recipes" / "debug.yaml"),
    "arms": ["pre_ln+normal", "pre_ln+scaled", "lns"],
    "depths": [8],
    "non-embedding-parameters": 1.0e6,
    "head-size": 16,
    "learning-rates": [2.0e-3, 4.0e-3, 8.0e-3],
    "extend-rates": 3,
    "seeds": [11, 12, 13],
    "steps": 10,
    "text": "sample",
    "rule": {"standard-errors": 2},
}

BEST = {"pre_ln+normal": 4e-3, "pre_ln+scaled": 4e-3, "lns": 3.2e-2}
"""The true best rates; that of lns is two steps beyond the grid."""
LOSS = {"pre_ln+normal": 2.0, "pre_ln+scaled": 1.9, "lns": 1.95}
SHIFT = {1: 0.0, 11: 0.03, 12: -0.01, 13: 0.04}
"""Of each seed, the same for all arms: only pairs are free of it."""
OWN = {("lns", 11): 0.002, ("lns", 12): -0.002}


def study_of(folder: Path, **changes) -> Study:
    """CONTENT with keys changed, or left out where None."""
    content = {key: value for key, value in {**CONTENT, **changes}.items() if value is not None}
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(content))
    return read_study(file)


def loss_of(job: Job) -> float:
    """The known loss of a run."""
    return (
        LOSS[job.arm]
        + 0.05 * math.log2(job.rate / BEST[job.arm]) ** 2
        + SHIFT[job.seed]
        + OWN.get((job.arm, job.seed), 0)
    )


def result_of(job: Job, loss: float | None, how: str | None = None) -> Result:
    """A record of a run."""
    variance = {} if loss is None else {"001": 1.0, "002": 2.0}
    bits = None if loss is None else loss / math.log(2)
    return Result(job.shape.name, job.arm, job.rate, job.seed, how, loss, bits, loss, 5.5, 1000, variance, [[1, 5.5]])


def run_all(study: Study, loss=loss_of, diverges=lambda job: False, limit: int = 200) -> dict[Job, Result]:
    """The results of the whole study."""
    results: dict[Job, Result] = {}
    for _ in range(limit):
        jobs = runnable(study, results)
        if not jobs:
            return results
        job = jobs[0]
        results[job] = result_of(job, None, "loss nan at step 3") if diverges(job) else result_of(job, loss(job))
    raise AssertionError("the study does not end")
