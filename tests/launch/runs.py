"""Runs that scripts start, watched from outside by what they write."""

import json
import time
from collections.abc import Callable
from pathlib import Path

from tests.conftest import ROOT
from tests.distributed.runs import succeed

# A run of a minute or less, over two pipeline stages; the steps are the caller's.
MODEL = ["--num-layers", "4", "--hidden-size", "32", "--ffn-hidden-size", "64", "--seq-length", "32"]
MODEL += ["--eval-interval", "100000", "--log-interval", "50", "--eval-iters", "1"]
MODEL += ["--pipeline-model-parallel-size", "2", "--num-workers", "0"]


def losses_of(save: Path) -> dict[int, float]:
    """Step -> training loss; of a step that was taken twice the last one."""
    path = save / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return {one["step"]: one["value"] for one in records if one["name"] == "lm loss"}


def steps_done(save: Path) -> int:
    return max(losses_of(save), default=0)


def events_of(save: Path) -> list[str]:
    return [json.loads(line)["event"] for line in (save / "events.jsonl").read_text().splitlines()]


def undisturbed(world: int, text_data: Path, save: Path, steps: int) -> dict[int, float]:
    """The losses of a run that nothing happens to."""
    data = [f"--{part}-data-path={text_data / f'some_{part}_text_document'}" for part in ("train", "valid")]
    flags = ["--recipe", str(ROOT / "recipes" / "debug.yaml"), *MODEL, *data, "--train-iters", str(steps)]
    succeed(world, [*flags, "--save", str(save), "--save-interval", "50"])
    return losses_of(save)


def wait_for(what: Callable[[], object], seconds: float, *logs: Path) -> None:
    """Until it holds; AssertionError with the end of the logs when it does not in time."""
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            said = [f"{log.name}:\n{log.read_text()[-3000:]}" for log in logs if log.exists()]
            raise AssertionError(f"not within {seconds} s:\n" + "\n".join(said or ["no output"]))
        time.sleep(0.3)
