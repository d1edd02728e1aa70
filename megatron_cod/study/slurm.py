"""A Slurm array of the runs of a study that are known: each task is one run in the shipped template."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from megatron_cod.analysis.metrics import VALID_LOSS, read_metrics
from megatron_cod.comparison.runs import STOPPED
from megatron_cod.shipped import TEMPLATES
from megatron_cod.study.directory import StudyDirectory
from megatron_cod.study.jobs import Job, flags_of
from megatron_cod.study.scheduler import runnable

TEMPLATE = "examples/slurm/pretrain.sbatch"
_ONE_PROCESS = {"nodes": "1", "ntasks-per-node": "1", "gpus-per-node": "1"}
_OF_TEMPLATE = ("--recipe", "--train-data-path", "--valid-data-path", "--save", "--save-interval")
"""Flags that the template sets from its variables."""


def write_array(directory: StudyDirectory) -> list[str]:
    """Write the script and its list of runs; lines with the command that submits it."""
    jobs = runnable(directory.study, directory.results())
    if not jobs:
        return ["nothing is left to run"]
    lines = [_line(directory, job) for job in jobs]
    (directory.root / "array.txt").write_text("".join(f"{line}\n" for line in lines))
    script = directory.root / "array.sbatch"
    script.write_text(_script(directory, len(jobs)))
    return [
        f"{len(jobs)} runs are known; submit them from a folder that megatron-cod init has made, with",
        f"  sbatch {shlex.quote(str(script))}",
        "and repeat --slurm when they have ended: final runs, and rates where a grid grows, come next",
    ]


def _line(directory: StudyDirectory, job: Job) -> str:
    """SAVE, SAVE_INTERVAL and the other flags of a run, as words for bash."""
    given = flags_of(directory.study, job, directory.root, directory.prefix)
    values = {name: given[given.index(name) + 1] for name in _OF_TEMPLATE}
    skipped = {place for name in _OF_TEMPLATE for place in (given.index(name), given.index(name) + 1)}
    rest = [word for place, word in enumerate(given) if place not in skipped]
    return shlex.join([values["--save"], values["--save-interval"], *rest])


def _script(directory: StudyDirectory, runs: int) -> str:
    root = directory.root
    header = (TEMPLATES / "slurm" / "pretrain.sbatch").read_text().splitlines()
    options = [_one_process(line) for line in header if line.startswith("#SBATCH")]
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            *options,
            f"#SBATCH --array=0-{runs - 1}",
            f"# The runs of {root}, one a task; made by megatron-cod study --slurm.",
            "set -euo pipefail",
            'cd "${SLURM_SUBMIT_DIR:?submit this with sbatch}"',
            f'line=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {shlex.quote(str(root / "array.txt"))})',
            'eval "set -- $line" # words quoted for bash by the tool',
            f"export RECIPE={shlex.quote(str(root / 'recipe.yaml'))} DATA={shlex.quote(directory.prefix)}",
            "export SAVE=$1 SAVE_INTERVAL=$2",
            "shift 2",
            f"# shellcheck source={TEMPLATE}",
            f". {TEMPLATE}",
            "",
        ]
    )


def _one_process(line: str) -> str:
    for name, value in _ONE_PROCESS.items():
        line = re.sub(rf"--{name}=\S+", f"--{name}={value}", line)
    return line


def collect(directory: StudyDirectory) -> None:
    """Write the records of runs that ended without the study's own runner: tasks of an array."""
    for job in runnable(directory.study, directory.results()):
        folder = directory.root / job.folder
        metrics = folder / "metrics.jsonl"
        if not metrics.exists() or directory.running([job]):
            continue
        steps = directory.study.steps_of(job.shape)
        diverged = _stopped(folder)
        if diverged or steps in read_metrics(metrics).scalars.get(VALID_LOSS, {}):
            directory.finish(job, diverged, 0.0)


def _stopped(folder: Path) -> str | None:
    """The message with which a run ends for a loss that is not finite."""
    for log in sorted(folder.glob("logs/rank_*.log")):
        found = STOPPED.search(log.read_text(errors="replace"))
        if found:
            return found[0]
    return None
