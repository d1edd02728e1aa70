"""Are two runs the same? Their scalars step by step, their checkpoints tensor by tensor and global layer by layer.

    megatron-cod compare-runs runs/whole runs/resumed
    megatron-cod compare-runs runs/pp2 runs/tp2 --tolerance 1e-5
    megatron-cod compare-runs runs/a/iter_0001000 runs/b/iter_0001000 --all

A and B are each a run (what --save pointed to), a checkpoint (iter_XXXXXXX, torch_dist format) or a metrics.jsonl.
The parallel layouts they were trained at may differ. docs/compare_runs.md says what is compared and what is not.

Exit code: 0 equal, 1 different, 2 nothing to compare or damaged files.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_cod.analysis.compare_text import WORST, checkpoint_text, conclusion, metrics_text, plain
from megatron_cod.cli.parsing import Parser
from megatron_cod.errors import UserError, run_tool

if TYPE_CHECKING:
    from collections.abc import Callable

    from megatron_cod.analysis.compare import CheckpointResult, MetricsResult

_METRICS = "metrics.jsonl"


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__)
    parser.add_argument("a", metavar="A", help="run directory, checkpoint directory or metrics.jsonl")
    parser.add_argument("b", metavar="B", help="the same, to compare with A")
    what = parser.add_argument_group("what").add_mutually_exclusive_group()
    what.add_argument("--metrics-only", action="store_true", help="leave the checkpoints alone")
    what.add_argument("--checkpoints-only", action="store_true", help="leave the metrics alone")
    parser.add_argument("--step", type=int, metavar="N", help="which checkpoint of a run (default: the last both have)")
    near = parser.add_argument_group("how close (default: equal to the bit)")
    near.add_argument("--tolerance", type=float, default=0.0, metavar="X", help="absolute difference that is allowed")
    near.add_argument(
        "--rtol",
        type=float,
        default=0.0,
        metavar="X",
        help="allowed on top, times the largest value of that tensor and layer: says more than --tolerance of optimizer "
        "states, which are tiny",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--all", action="store_true", help=f"every tensor of every layer, not the worst {WORST}")
    output.add_argument("--json", metavar="FILE", help="write everything, machine-readable")
    return parser


@dataclass(frozen=True)
class _Source:
    """What A or B stands for."""

    name: str
    metrics: Path | None
    checkpoints: dict[int, Path]
    """Of a run, by step."""
    checkpoint: Path | None = None
    """Given itself."""

    @property
    def is_file(self) -> bool:
        return Path(self.name).is_file()


def _source(name: str) -> _Source:
    from megatron_cod.checkpoint.tensors import finished_checkpoints, is_checkpoint

    path = Path(name)
    if path.is_file():
        return _Source(name, path, {})
    if not path.is_dir():
        raise UserError(f"{name} does not exist")
    if is_checkpoint(path):
        return _Source(name, None, {}, path)
    metrics, checkpoints = path / _METRICS, finished_checkpoints(path)
    if not metrics.is_file() and not checkpoints:
        raise UserError(f"{name} holds neither {_METRICS} nor a finished checkpoint in the torch_dist format")
    return _Source(name, metrics if metrics.is_file() else None, checkpoints)


def _pick(a: _Source, b: _Source, step: int | None) -> tuple[Path, Path]:
    """One checkpoint of each. UserError when there is none, or not of a step that both have."""
    for source in (a, b):
        if not source.checkpoint and not source.checkpoints:
            raise UserError(f"{source.name} has no finished checkpoint in the torch_dist format (try --metrics-only)")
    runs = [source for source in (a, b) if source.checkpoint is None]
    if not runs and step is not None:
        raise UserError("--step picks a checkpoint of a run, but A and B are checkpoints")
    if len(runs) == 1 and step is None:  # the run's checkpoint of the same step as the one given
        given = (a.checkpoint or b.checkpoint or Path()).resolve().name.removeprefix("iter_")
        step = int(given) if given.isdigit() else None
    common = set.intersection(*(set(source.checkpoints) for source in runs)) if runs else set()
    if step is None:
        step = max(common, default=None)
    if runs and step not in common:
        have = "; ".join(f"{source.name} has {', '.join(map(str, source.checkpoints))}" for source in runs)
        raise UserError(f"no checkpoint of {'a step that both have' if step is None else f'step {step}'}: {have}")
    first, second = (source.checkpoint or source.checkpoints[step or 0] for source in (a, b))
    return first, second


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal; nothing in a log."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn

    columns = BarColumn(20), TaskProgressColumn(), TimeRemainingColumn()
    terminal = sys.stderr.isatty()
    with Progress(*columns, console=Console(file=sys.stderr), transient=True, disable=not terminal) as bar:
        task = bar.add_task("")
        yield lambda done, total: bar.update(task, completed=done, total=total)


def main() -> None:
    args = build_parser().parse_args()
    if args.json and not Path(args.json).parent.is_dir():  # now, not after an hour of reading
        raise UserError(f"{args.json}: its folder does not exist")
    for flag, value in {"--tolerance": args.tolerance, "--rtol": args.rtol}.items():
        if not 0 <= value < math.inf:
            raise UserError(f"{flag} must be a number from 0, got {value}")
    # After parsing, so that --help and wrong options answer at once; first, as Megatron reads what it prepares.
    from megatron_cod.training import before_megatron  # noqa: F401, I001
    from megatron_cod.checkpoint.tensors import Checkpoint
    from megatron_cod.analysis.compare import Tolerance, compare_checkpoints, compare_metrics
    from megatron_cod.analysis.metrics import read_metrics

    tolerance = Tolerance(args.tolerance, args.rtol)
    a, b = _source(args.a), _source(args.b)
    metrics, checkpoints = None, None
    texts = [f"A: {args.a}\nB: {args.b}"]
    pair = _pick(a, b, args.step) if _wants_checkpoints(args, a, b) else None
    if args.checkpoints_only:
        texts.append("Metrics: not compared (--checkpoints-only)")
    elif a.metrics and b.metrics:
        metrics = compare_metrics(read_metrics(a.metrics), read_metrics(b.metrics), tolerance)
        texts.append(metrics_text(metrics))
    elif pair is None:
        raise UserError(f"{b.name if a.metrics else a.name} has no {_METRICS}")
    else:
        texts.append(f"Metrics: not compared, {_METRICS} is not on both sides")
    if pair is not None:
        opened = Checkpoint(pair[0]), Checkpoint(pair[1])
        with _bar() as progress:
            checkpoints = compare_checkpoints(*opened, tolerance, progress)
        texts.append(checkpoint_text(checkpoints, args.all))
        if checkpoints.schemes[0] != checkpoints.schemes[1]:
            texts.insert(1, "NORM SCHEME DIFFERS: {} in A, {} in B".format(*checkpoints.schemes))
    else:
        texts.append(
            "Checkpoints: not compared" + (" (--metrics-only)" if args.metrics_only else ", not on both sides")
        )
    print("\n\n".join([*texts, conclusion(metrics, checkpoints, tolerance)]))
    results: dict[str, MetricsResult | CheckpointResult] = {}
    results |= {"metrics": metrics} if metrics else {}
    results |= {"checkpoints": checkpoints} if checkpoints else {}
    equal = all(result.equal for result in results.values())
    if args.json:
        exact = equal and all(result.max_abs_diff == 0 for result in results.values())
        content = {"a": args.a, "b": args.b, "equal": equal, "to_the_bit": exact, "tolerance": asdict(tolerance)}
        content |= {name: asdict(result) | {"equal": result.equal} for name, result in results.items()}
        if metrics:
            content["metrics"]["first_step"] = metrics.first_step
        Path(args.json).write_text(json.dumps(plain(content), indent=1) + "\n")
    if not equal:
        sys.exit(1)


def _wants_checkpoints(args: argparse.Namespace, a: _Source, b: _Source) -> bool:
    if args.metrics_only:
        return False
    if args.checkpoints_only or args.step is not None:
        return True
    if a.is_file or b.is_file:  # a metrics.jsonl can be compared with metrics only
        return False
    return any(source.checkpoint or source.checkpoints for source in (a, b))


if __name__ == "__main__":
    run_tool(main)
