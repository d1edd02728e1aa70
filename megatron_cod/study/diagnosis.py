"""Depth diagnostics of a study: what removing each layer costs, for the first final seed of each arm at its tuned rate."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_cod.checkpoint.directory import iterations
from megatron_cod.comparison.runs import Show
from megatron_cod.study.directory import StudyDirectory
from megatron_cod.study.jobs import Job
from megatron_cod.study.scheduler import best_of
from megatron_cod.study.shapes import Shape
from megatron_cod.study.study_file import Study

_TOOL = Path(__file__).resolve().parents[2] / "tools" / "analyze_depth.py"
_TOKENS = 16384
_FOLDER = "depth"
REMOVAL = "removal.json"
"""Of a report, and of a directory that has imported runs: what ``removal_costs`` measured."""


def _jobs(directory: StudyDirectory) -> Iterator[Job]:
    """The runs that are diagnosed, as far as they are done and did not diverge."""
    study, results = directory.study, directory.results()
    for shape in study.shapes:
        for arm in study.arms:
            best = best_of(study, results, shape, arm)
            job = None if best is None else Job(shape, arm, best.rate, study.seeds[0])
            if job is not None and job in results and results[job].loss is not None:
                yield job


def diagnose(directory: StudyDirectory, show: Show) -> None:
    """Measure what was not measured yet. A diagnosis that fails is reported and skipped."""
    for job in _jobs(directory):
        folder = directory.root / job.folder
        if (folder / _FOLDER / "depth.json").exists() or not iterations(str(folder)):
            continue
        shutil.rmtree(folder / _FOLDER, ignore_errors=True)
        show(f"{job.name}: cost of removing each layer")
        command = [
            sys.executable,
            str(_TOOL),
            "--model",
            str(folder),
            "--data",
            f"{directory.prefix}_valid_text_document",
        ]
        command += ["--output", str(folder / _FOLDER), "--metrics", "surgery", "--tokens", str(_TOKENS)]
        command += ["--seq-length", str(directory.study.recipe["seq-length"])]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            show(f"{job.name}: not diagnosed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")


def _imported(directory: StudyDirectory) -> dict[tuple[Shape, str], list[float]]:
    path = directory.root / REMOVAL
    listed = json.loads(path.read_text()) if path.exists() else []
    return costs_of(directory.study, listed)


def costs_of(study: Study, listed: list[dict[str, Any]]) -> dict[tuple[Shape, str], list[float]]:
    """What a report's ``removal.json`` holds, by shape and arm. KeyError for another study's."""
    shapes = {shape.name: shape for shape in study.shapes}
    return {(shapes[one["shape"]], one["arm"]): one["rise"] for one in listed}


def removal_costs(directory: StudyDirectory) -> dict[tuple[Shape, str], list[float]]:
    """(shape, arm) -> rise of the loss without each layer, of what was diagnosed."""
    found = _imported(directory)
    for job in _jobs(directory):
        path = directory.root / job.folder / _FOLDER / "depth.json"
        if path.exists():
            found[job.shape, job.arm] = [float(one["mean"]) for one in json.loads(path.read_text())["removal"]]
    return found
