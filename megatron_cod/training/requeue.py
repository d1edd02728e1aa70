"""Whether a job should be queued again, for job scripts: an exit code is not enough to decide.

    python -m megatron_cod.training.requeue SAVE --retries 3

ends with 0 for "queue it again", 1 for "it is done" and 2 for "give up": after RETRIES times of this job at the same step,
or where SAVE cannot be written, since tries could not be counted then. Requeues by Slurm itself are not counted: it
kills the script that would ask, and a job that is preempted, or loses a node, has done nothing wrong.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_cod.checkpoint.directory import newest_whole
from megatron_cod.checkpoint.events import read_events, record
from megatron_cod.launch.scheduler import slurm_job

AGAIN, DONE, GIVE_UP = 0, 1, 2
QUEUED = "queued again"


def newest_step(save: Path) -> int:
    """The step that the run would resume from; 0 where there is none, or no whole checkpoint."""
    try:
        checkpoint, _ = newest_whole(save)
    except ValueError:
        return 0
    number = checkpoint.name.removeprefix("iter_") if checkpoint else ""
    return int(number) if number.isdigit() else 0


def decide(save: Path, retries: int, job: str | None) -> tuple[int, str]:
    """The exit code, and the line with the reason. An answer of "again" is recorded, so that the next can count.

    job: the tries of others, for example a job before the user's repair, do not count.
    """
    try:
        save.mkdir(parents=True, exist_ok=True)  # a wrong flag ends a run before it makes its directory
        return _decide(save, retries, job)
    except OSError as error:
        why = error.strerror or str(error)
        return GIVE_UP, f"{error.filename or save}: {why}; tries cannot be counted there: not queued again"


def _decide(save: Path, retries: int, job: str | None) -> tuple[int, str]:
    events, step = read_events(save), newest_step(save)
    if any(one.get("event") == "finished" for one in events[-1:]):
        return DONE, f"finished at step {events[-1].get('step')}"
    tried = 0
    for one in reversed([one for one in events if one.get("event") == QUEUED and one.get("job") == job]):
        if one.get("step") != step:
            break
        tried += 1
    if tried >= retries:
        return GIVE_UP, f"no step of progress since step {step} in {tried} tries: not queued again"
    record(save, QUEUED, step=step, job=job)
    return AGAIN, f"queued again at step {step}" + (f", try {tried + 1} of {retries} there" if tried else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("save", type=Path, metavar="SAVE", help="the run's --save")
    parser.add_argument("--retries", type=int, default=3, metavar="N", help="at one and the same step (default 3)")
    args = parser.parse_args()
    code, line = decide(args.save, args.retries, slurm_job())
    print(line, flush=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
