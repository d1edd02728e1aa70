"""The directory of a study: bound to one study file and one text, with a record for each finished run."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from megatron_cod.analysis.metrics import read_metrics
from megatron_cod.common.files import write_whole
from megatron_cod.data.datasets.content import content_digest
from megatron_cod.data.sample_corpus import prepare_sample
from megatron_cod.errors import UserError
from megatron_cod.study.jobs import Job
from megatron_cod.study.results import Result, from_record, result_of
from megatron_cod.study.study_file import SAMPLE, Study
from megatron_cod.study.version import package_version
from megatron_cod.training.faults.save_claim import FILE as RUNNING
from megatron_cod.training.faults.save_claim import SILENT_SECONDS

RECORD, FAILED, TIMES = "run.json", "failed.txt", "seconds.json"
FACTS = "study.json"
"""What the study is, and the versions of the package that made imported runs."""
SPLITS = ("train", "valid")


class StudyDirectory:
    """Where a study's runs are."""

    def __init__(self, root: Path, study: Study) -> None:
        self.root, self.study = root, study

    @property
    def prefix(self) -> str:
        """Of the text's datasets."""
        return str(self.root / "data" / "sotu") if self.study.text == SAMPLE else self.study.text

    def bind(self) -> None:
        """Write what the study is, or compare it with what is there. UserError where it is another study or text."""
        self.check()
        if self.study.text == SAMPLE:
            prepare_sample(self.root / "data")
        texts = {split: content_digest(f"{self.prefix}_{split}_text_document") for split in SPLITS}
        path = self.root / FACTS
        if path.exists():
            if self.facts()["text"] != texts:
                raise UserError(
                    f"{self.root} has runs on another text than {self.prefix} is now; give another --output"
                )
            return
        self.root.mkdir(parents=True, exist_ok=True)
        (self.root / "recipe.yaml").write_text(yaml.safe_dump(self.study.recipe, sort_keys=True))
        facts = {"digest": self.study.digest(), "text": texts, "study": self.study.content(), "code": []}
        _write_json(path, facts)

    def facts(self) -> dict[str, Any]:
        """Of the directory's ``study.json``: digest and content of the study, digests of the text.

        UserError where nothing was run there.
        """
        if not (self.root / FACTS).exists():
            raise UserError(f"{self.root} holds no study yet: run it first, or give the --output of one")
        facts: dict[str, Any] = json.loads((self.root / FACTS).read_text())
        return facts

    def add_versions(self, versions: Iterable[str]) -> None:
        """Note the versions of the package that made imported runs."""
        known = self.facts().get("code", [])
        _write_json(self.root / FACTS, self.facts() | {"code": _joined(known, versions)})

    def versions(self) -> list[str]:
        """The versions of the package that made the finished runs, those of imported runs first."""
        times = (json.loads(path.read_text()) for path in self.root.glob(f"runs/*/*/*/*/{TIMES}"))
        return _joined(self.facts().get("code", []), sorted({one["code"] for one in times if "code" in one}))

    def check(self) -> None:
        """UserError where the directory belongs to another study file."""
        path = self.root / FACTS
        if not path.exists():
            if self.root.exists() and any(self.root.iterdir()) and not (self.root / "data").exists():
                raise UserError(f"{self.root} is not empty and holds no study; give another --output")
            return
        there = json.loads(path.read_text())
        if there["digest"] != self.study.digest():
            raise UserError(
                f"{self.root} belongs to another study: {_difference(there['study'], self.study.content())}"
            )

    def results(self) -> dict[Job, Result]:
        """Every finished run, also of rates beyond the grid."""
        found = {}
        for path in sorted(self.root.glob(f"runs/*/*/*/*/{RECORD}")):
            result = from_record(json.loads(path.read_text()))
            shape = next((one for one in self.study.shapes if one.name == result.shape), None)
            if shape is not None:
                found[Job(shape, result.arm, result.rate, result.seed)] = result
        return found

    def finish(self, job: Job, diverged: str | None, seconds: float) -> Result:
        """Write the record of a run that has ended."""
        folder = self.root / job.folder
        result = result_of(job, read_metrics(folder / "metrics.jsonl"), diverged)
        _write_json(folder / TIMES, {"seconds": round(seconds, 1), "code": package_version()})
        (folder / FAILED).unlink(missing_ok=True)
        _write_json(folder / RECORD, result.record())
        return result

    def seconds(self, job: Job) -> float | None:
        """How long a run took here, from its last resume on; None for an imported one."""
        path = self.root / job.folder / TIMES
        return float(json.loads(path.read_text())["seconds"]) if path.exists() else None

    def fail(self, job: Job, line: str) -> None:
        """Note why a run failed; it is tried again when the study resumes."""
        folder = self.root / job.folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FAILED).write_text(line + "\n")

    def failures(self, jobs: Iterable[Job]) -> dict[Job, str]:
        """Jobs that failed -> why."""
        paths = {job: self.root / job.folder / FAILED for job in jobs}
        return {job: path.read_text().strip() for job, path in paths.items() if path.exists()}

    def running(self, jobs: Iterable[Job]) -> list[Job]:
        """Jobs with a live process: its heartbeat is recent."""
        return [job for job in jobs if _age(self.root / job.folder / RUNNING) < SILENT_SECONDS]

    def drop_checkpoints(self, job: Job) -> None:
        """Free the disk of a finished run."""
        for path in (self.root / job.folder).glob("iter_*"):
            shutil.rmtree(path)


def _joined(first: list[str], more: Iterable[str]) -> list[str]:
    return [*first, *(one for one in more if one not in first)]


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return float("inf")


def _difference(there: dict[str, Any], now: dict[str, Any]) -> str:
    for key in now:
        if there.get(key) != now[key]:
            if isinstance(now[key], dict) and isinstance(there.get(key), dict):
                return f"{key}: {_difference(there[key], now[key])}"
            return f"{key} was {_short(there.get(key))}, and is now {_short(now[key])}; give another --output"
    return "it was made by another version; give another --output"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _write_json(path: Path, content: Any) -> None:
    write_whole(path, json.dumps(content, indent=1) + "\n")
