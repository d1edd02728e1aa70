"""Rehearse ranks in processes of their own, one after the other."""

import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_cod.rehearsal.worker import BuiltChunk, Job, RankReport


class RehearsalFailed(Exception):
    """The rank could not be built or run; its text is one line."""


def _why(output: str, code: int, log: Path) -> str:
    """The most helpful line: our own error, else the last exception's, with where the rest is."""
    lines = [re.sub(r"^\[rank\d+\]: ", "", line).strip() for line in output.splitlines()]
    ours = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if ours:
        return ours[-1]
    raised = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    reason = raised[-1] if raised else f"exit code {code}" + (" (killed, for want of memory?)" if code == -9 else "")
    return f"{reason} (log: {log})"


def report_from(content: dict[str, Any]) -> RankReport:
    """A report as it was written."""
    return RankReport(**content | {"chunks": [BuiltChunk(**chunk) for chunk in content["chunks"]]})


def run_job(job: Job, threads: int) -> RankReport:
    """The job in a new process of ``threads`` threads (OMP_NUM_THREADS in the environment wins).

    RehearsalFailed, with a log kept in the temporary folder, where it does not end well.
    """
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as folder:
        job_file, report_file = Path(folder, "job.json"), Path(folder, "report.json")
        job_file.write_text(json.dumps(asdict(job)))
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ, "PYTHONUNBUFFERED": "1"}
        process = subprocess.run(
            [sys.executable, "-m", "megatron_cod.rehearsal.worker", str(job_file), str(report_file)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
            check=False,
        )
        if process.returncode == 0 and report_file.is_file():
            return report_from(json.loads(report_file.read_text()))
    log = Path(tempfile.gettempdir(), f"rehearsal-rank{job.rank}.log")
    log.write_text(process.stdout)
    raise RehearsalFailed(f"rank {job.rank}: {_why(process.stdout, process.returncode, log)}")
