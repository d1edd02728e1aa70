"""On a machine with a GPU: tests, step times, a short training and the depth study, in 25 minutes, into one folder.

    make gpu-proof
    python tools/gpu_proof.py --output runs/gpu_proof --parts tests step_time

The parts run in order of worth, each for a limited time; one that fails does not stop the next. report.md has a line
for each, and NAME.txt its output. Without a GPU the parts are printed and nothing runs.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

PYTHON = [sys.executable, "-u", "-m"]
COMMAND = [*PYTHON, "megatron_cod"]
_SECONDS_TO_END = 20
"""After SIGTERM, until SIGKILL."""


@dataclass(frozen=True)
class Part:
    """One part. OUT in its words is the folder."""

    what: str
    words: tuple[str, ...]
    seconds: int
    toy: tuple[str, ...]
    """The same at a size that a CPU runs in seconds."""
    needs: str = ""
    """A file without which it is skipped."""
    may_be_stopped: bool = False
    """Whether the limit is part of the plan: the command resumes when it is repeated."""


def _schemes(name: str, *flags: str) -> tuple[str, ...]:
    return (*COMMAND, "benchmark", "schemes", *flags, "--json", f"OUT/{name}.json", "--markdown", f"OUT/{name}.md")


_BACKENDS = ("--backends", "transformer_engine", "torch")
_ARMS = ("--schemes", "pre_ln+normal,pre_ln+scaled,lns", "--seeds", "1", "--output", "OUT/training")
_WIDE = ("--num-layers", "24", "--hidden-size", "512", "--ffn-hidden-size", "1376", "--num-attention-heads", "8")
_TOY = ("--num-layers", "2", "--rounds", "2", "--warmup", "1")

PARTS = {
    "tests": Part(
        "every test that is marked gpu",
        (*PYTHON, "pytest", "-m", "gpu"),
        300,
        (*PYTHON, "pytest", "-m", "gpu", "tests/adaptations/test_cpu.py"),
    ),
    "step_time": Part(
        "step time of Pre-LN and LNS, and kernels a layer, 130M and 1B parameters",
        _schemes(
            "step_time",
            *("--recipe", "llama_130m", "llama_1b", "--bf16", "--micro-batch-size", "16", *_BACKENDS, "--profile"),
        ),
        300,
        _schemes("step_time", *_TOY, "--profile"),
    ),
    "step_time_7b": Part(
        "the same, blocks of the 7B recipe at sequences of 2048",
        _schemes(
            "step_time_7b",
            *("--recipe", "llama_7b", "--bf16", "--num-layers", "4", "--seq-length", "2048", "--micro-batch-size", "2"),
            *_BACKENDS,
        ),
        200,
        _schemes("step_time_7b", *_TOY),
    ),
    "training": Part(
        "Pre-LN and LNS trained on the sample corpus in bf16",
        (*COMMAND, "compare-schemes", "--recipe", "debug", *_ARMS, "--steps", "400", "--", "--bf16", *_WIDE),
        300,
        (*COMMAND, "compare-schemes", "--recipe", "debug", *_ARMS, "--steps", "4", "--", "--num-layers", "2"),
    ),
    "study": Part(
        "the depth study at 10M parameters, as far as it comes",
        (*COMMAND, "study", "recipes/studies/gpu_10m.yaml", "--output", "OUT/study"),
        400,
        (*COMMAND, "study", "recipes/studies/cpu_1m.yaml", "--output", "OUT/study", "--plan"),
        needs="corpus/bytes_train_text_document.bin",
        may_be_stopped=True,
    ),
}


@dataclass(frozen=True)
class Result:
    """How a part ended."""

    state: str
    seconds: float


def run_part(name: str, words: Sequence[str], seconds: int, folder: Path, may_be_stopped: bool) -> Result:
    """Run a part with its output in NAME.txt; stop it, and what it started, at its limit."""
    began = time.monotonic()
    with (folder / f"{name}.txt").open("w") as log:
        process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait(seconds)
            state = "passed" if code == 0 else f"failed (exit code {code})"
        except subprocess.TimeoutExpired:
            state = f"stopped at its limit of {seconds} s" + (": repeat to resume" if may_be_stopped else "")
            _end(process)
    return Result(state, time.monotonic() - began)


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(_SECONDS_TO_END)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def report(results: dict[str, Result]) -> str:
    """report.md: device, versions, and a line a part."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: toy sizes"
    lines = [f"GPU proof: {device}, torch {torch.__version__}", "", "| part | what | ended | seconds | output |"]
    lines.append("| --- | --- | --- | ---: | --- |")
    for name, result in results.items():
        lines.append(f"| {name} | {PARTS[name].what} | {result.state} | {result.seconds:.0f} | {name}.txt |")
    return "\n".join(lines) + "\n"


def is_good(name: str, result: Result) -> bool:
    """Whether a part ended as planned."""
    stopped = result.state.startswith("stopped") and PARTS[name].may_be_stopped
    return stopped or result.state.startswith(("passed", "skipped"))


def main(command_line: Sequence[str] | None = None) -> int:
    """Run the parts; 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/gpu_proof"), help="the folder (%(default)s)")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, metavar="NAME", help=", ".join(PARTS))
    parser.add_argument("--toy", action="store_true", help="toy sizes, without a GPU too: tests the parts themselves")
    args = parser.parse_args(command_line)
    if not torch.cuda.is_available() and not args.toy:
        print("no GPU found; on a machine with one this would run, in order:")
        for name in args.parts:
            print(f"  {name}: {PARTS[name].what}, {PARTS[name].seconds} s at most")
        return 0
    args.output.mkdir(parents=True, exist_ok=True)
    results: dict[str, Result] = {}
    for name in args.parts:
        part = PARTS[name]
        words = [word.replace("OUT", str(args.output)) for word in (part.toy if args.toy else part.words)]
        print(f"{name}: {part.what} ({part.seconds} s at most)", flush=True)
        if part.needs and not args.toy and not Path(part.needs).exists():
            results[name] = Result(f"skipped: {part.needs} is not there", 0.0)
        else:
            results[name] = run_part(name, words, part.seconds, args.output, part.may_be_stopped)
        print(f"  {results[name].state}, {results[name].seconds:.0f} s", flush=True)
        (args.output / "report.md").write_text(report(results))  # also if the machine is taken away now
    print(f"report: {args.output / 'report.md'}")
    return 0 if all(is_good(name, result) for name, result in results.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
