"""The actions of megatron-cod study."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from megatron_cod.comparison.runs import Show
from megatron_cod.errors import UserError
from megatron_cod.study.diagnosis import diagnose
from megatron_cod.study.directory import StudyDirectory
from megatron_cod.study.imported_runs import import_runs
from megatron_cod.study.plan import plan_lines, time_lines
from megatron_cod.study.report import report_of_raw, write_report
from megatron_cod.study.runner import Launch, Machine, Runner
from megatron_cod.study.slurm import collect, write_array
from megatron_cod.study.status import status_lines
from megatron_cod.study.study_file import read_study
from megatron_cod.training.faults.save_claim import SaveClaim, check_no_other_run


class Command:
    """A study file, a directory and a machine."""

    def __init__(self, file: Path, output: Path, jobs: int, show: Show, launch: Launch | None = None) -> None:
        """launch: how a run is started, by default as a process of this machine; a launch of tests diagnoses nothing."""
        self._jobs, self._show, self._diagnoses = jobs, show, launch is None
        self._launch = launch or Machine(jobs).launch
        self.directory = StudyDirectory(output, read_study(file))

    def plan(self) -> None:
        """Print what the study costs."""
        self.directory.bind()
        self._print(lambda: plan_lines(self.directory))
        time_lines(self.directory, self._jobs, self._launch, self._show)

    def status(self) -> None:
        """Print how far it is."""
        self.directory.check()
        collect(self.directory)
        self._print(lambda: status_lines(self.directory))

    def run(self, records: Path | None = None) -> None:
        """Run all that is left, and write the report. UserError where runs failed.

        records: the folder of a report of this study, whose runs are imported as finished.
        """
        self.directory.bind()
        check_no_other_run(str(self.directory.root), self._show)
        with SaveClaim(str(self.directory.root)).around_training():
            if records is not None:
                self._show(f"{import_runs(self.directory, records)} finished runs imported from {records}")
            self._print(lambda: plan_lines(self.directory))
            runner = Runner(self.directory, self._jobs, self._launch, self._show)
            runner.run()
            if self._diagnoses:
                diagnose(self.directory, self._show)
        self.report()
        if runner.failed:
            job, line = next(iter(runner.failed.items()))
            raise UserError(
                f"{len(runner.failed)} runs failed, the first {job.name}: {line}; repeat the command to retry"
            )

    def report(self) -> None:
        """Write the report of the runs that are done."""
        self.directory.check()
        collect(self.directory)
        self._written(write_report(self.directory))

    def report_of(self, raw: Path) -> None:
        """Write the report of the records in another report's folder."""
        self._written(report_of_raw(self.directory.study, raw, self.directory.root))

    def slurm(self) -> None:
        """Write an array of the runs that are known."""
        self.directory.bind()
        collect(self.directory)
        self._print(lambda: write_array(self.directory))

    def _written(self, paths: list[Path]) -> None:
        for path in paths:
            self._show(f"written: {path}")

    def _print(self, lines: Callable[[], list[str]]) -> None:
        for line in lines():
            self._show(line)
