"""Random kills of a run under the shipped single-node script: SIGKILL of a random rank at a random moment.

    python -m tests.launch.kill_campaign --kills 50 --table docs/results/kill_campaign.md

Every second kill waits for a save to begin. The script's torchrun starts all ranks again each time; in the end the losses
of all steps must be those of a run that nobody disturbed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import psutil

from megatron_cod.checkpoint.directory import iterations, read_tracker
from megatron_cod.checkpoint.events import read_events
from megatron_cod.data.sample_corpus import prepare_sample

ROOT = Path(__file__).resolve().parents[2]
MODEL = ["--num-layers", "4", "--hidden-size", "32", "--ffn-hidden-size", "64", "--seq-length", "32"]
MODEL += ["--pipeline-model-parallel-size", "2", "--eval-interval", "100", "--eval-iters", "1"]
STEPS, SAVE_INTERVAL = 900, 3
_LONGEST_WAIT = 180.0


@dataclass(frozen=True)
class Kill:
    """One kill: which rank, what the run was at, and where it went on."""

    number: int
    rank: int
    moment: str
    step: int
    """The last step with a loss."""
    tracked: int
    """The step of the newest finished checkpoint."""

    @property
    def in_save(self) -> bool:
        return self.moment.startswith("in the save")


def losses_of(save: Path) -> dict[int, float]:
    """Step -> loss, of the last time it was made; a line that is being written is omitted."""
    found = {}
    path = save / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record["name"] == "lm loss":
            found[record["step"]] = record["value"]
    return found


@contextmanager
def launched(save: Path, log: Path, data: str, steps: int) -> Iterator[subprocess.Popen[str]]:
    """The shipped script with its variables set."""
    variables = {
        "PYTHON": sys.executable,
        "TRAIN": f"{data}_train_text_document",
        "VALID": f"{data}_valid_text_document",
        "SAVE": str(save),
        "SAVE_INTERVAL": str(SAVE_INTERVAL),
        "PROCESSES": "2",
        "RESTARTS": "1000",
        "PYTHONUNBUFFERED": "1",
    }
    command = [str(ROOT / "examples" / "single_node.sh"), *MODEL, "--train-iters", str(steps)]
    with log.open("w") as file:
        process = subprocess.Popen(
            command, env={**os.environ, **variables}, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, text=True
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            for child in [*psutil.Process(process.pid).children(recursive=True), process]:
                child.send_signal(signal.SIGKILL)
            process.wait()


def ranks_of(launcher: int) -> dict[int, psutil.Process]:
    """Rank -> its process; not the helpers of a save, nor loaders."""
    found = {}
    for process in psutil.Process(launcher).children(recursive=True):
        try:
            environment, parent = process.environ(), process.parent()
        except psutil.Error:
            continue
        is_child_of_rank = parent is not None and _has_rank(parent)
        if "RANK" in environment and "LOCAL_RANK" in environment and not is_child_of_rank:
            found[int(environment["RANK"])] = process
    return found


def _has_rank(process: psutil.Process) -> bool:
    try:
        return "LOCAL_RANK" in process.environ()
    except psutil.Error:
        return False


def save_in_progress(save: Path) -> int | None:
    """The step of a checkpoint that is being written: its directory is there, and the tracker does not name it yet."""
    newest = max(iterations(save), default=0)
    return newest if newest > tracked_step(save) else None


def tracked_step(save: Path) -> int:
    """The step of the newest finished checkpoint; 0 without one."""
    return int((read_tracker(save) if save.is_dir() else None) or 0)


def wait(what: Callable[[], object], process: subprocess.Popen[str], seconds: float = _LONGEST_WAIT) -> bool:
    """Poll until it holds; False where the run ended or the time is over."""
    deadline = time.monotonic() + seconds
    while not what():
        if process.poll() is not None or time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


def campaign(save: Path, data: str, kills: int, seed: int, log: Callable[[str], None]) -> list[Kill]:
    """Kill ``kills`` times, then let the run end. AssertionError where it does not end well."""
    draw, done = random.Random(seed), []
    log, begun = save.with_suffix(".log"), 0
    with launched(save, log, data, STEPS) as process:
        for number in range(1, kills + 1):
            if number % 2 == 0:
                # A save of this attempt, one of the next few: what the last attempt left behind is cleaned up before this
                # one says that it starts.
                assert wait(lambda begun=begun: _starts(save) > begun, process), f"no start: see {log}"
                ranks, target = ranks_of(process.pid), tracked_step(save) + draw.randint(1, 4 * SAVE_INTERVAL)
                began = lambda target=target: (save_in_progress(save) or 0) >= target  # noqa: E731
                assert wait(began, process), f"no save began: see {log}"
                time.sleep(draw.uniform(0.0, 0.1))
            else:
                assert wait(lambda: len(ranks_of(process.pid)) == 2, process), f"no ranks: see {log}"
                time.sleep(draw.uniform(0.0, 15.0))
                ranks = ranks_of(process.pid)
            assert ranks, f"the run ended before kill {number}: see {log}"
            done.append(_kill(number, ranks, save, draw))
            log(f"kill {number}/{kills}: rank {done[-1].rank} {done[-1].moment}; newest checkpoint {done[-1].tracked}")
            begun, old = _starts(save), set(ranks.values())
            wait(lambda old=old: not set(ranks_of(process.pid).values()) & old, process, 60)
        code = process.wait(_LONGEST_WAIT + 2 * STEPS)
    assert code == 0, f"exit code {code}: {log.read_text()[-3000:]}"
    return done


def _starts(save: Path) -> int:
    return sum(one.get("event") == "start" for one in read_events(save))


def _kill(number: int, ranks: dict[int, psutil.Process], save: Path, draw: random.Random) -> Kill:
    rank, before = draw.choice(sorted(ranks)), save_in_progress(save)
    ranks[rank].send_signal(signal.SIGKILL)
    writing = before if before is not None and before == save_in_progress(save) else None
    steps = max(losses_of(save), default=0)
    last = next((one.get("event") for one in reversed(read_events(save))), None)
    moment = (
        f"in the save of step {writing}" if writing else f"after step {steps}" if last == "start" else "in the set-up"
    )
    return Kill(number, rank, moment, steps, tracked_step(save))


def table(kills: list[Kill], seed: int, seconds: float) -> str:
    """The campaign as a page."""
    during = sum(kill.in_save for kill in kills)
    lines = [
        "# Random kills",
        "",
        f"{len(kills)} times SIGKILL of a random rank at a random moment, {during} of them in a save, over a run of",
        f"{STEPS} steps that saves every {SAVE_INTERVAL} (2 pipeline stages, 4 layers, byte-level text,",
        "`examples/single_node.sh`). It ended with the losses of the undisturbed run, step by step and to the bit.",
        f"Seed {seed}, {seconds / 60:.0f} minutes, {date.today()}. Made by",
        "`python -m tests.launch.kill_campaign`; `make test-kills` repeats it.",
        "",
        "| kill | rank | moment | last step with a loss | newest finished checkpoint |",
        "|---|---|---|---|---|",
    ]
    lines += [f"| {kill.number} | {kill.rank} | {kill.moment} | {kill.step} | {kill.tracked} |" for kill in kills]
    return "\n".join(lines) + "\n"


def run(folder: Path, kills: int, seed: int, log: Callable[[str], None]) -> tuple[list[Kill], str]:
    """The undisturbed run and the campaign; its kills and its page. AssertionError where the losses differ."""
    data = prepare_sample(folder / "data")
    whole = folder / "whole"
    with launched(whole, folder / "whole.log", data, STEPS) as process:
        assert process.wait(_LONGEST_WAIT + 2 * STEPS) == 0, (folder / "whole.log").read_text()[-3000:]
    log(f"the undisturbed run: {len(losses_of(whole))} steps")
    begun = time.monotonic()
    done = campaign(folder / "killed", data, kills, seed, log)
    ours, theirs = losses_of(folder / "killed"), losses_of(whole)
    differing = [step for step in range(1, STEPS + 1) if ours.get(step) != theirs.get(step)]
    assert len(theirs) == STEPS and not differing, f"steps that differ: {differing}"
    return done, table(done, seed, time.monotonic() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--table", type=Path, help="write the page here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        _, page = run(Path(folder), args.kills, args.seed, lambda line: print(line, flush=True))
    if args.table:
        args.table.write_text(page)
    print(page)


if __name__ == "__main__":
    main()
