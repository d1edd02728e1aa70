"""The table of docs/benchmarks.md: each row is a run of ``benchmark hf`` in a process of its own."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from megatron_cod.errors import UserError

_ARMS = ("pre_ln", "lns", "transformers again")


@dataclass(frozen=True)
class TableRow:
    """One row: a shape, what is timed, and how often."""

    work: str
    shape: tuple[int, int, int, int, int]
    """Layers, hidden, heads, ffn, vocabulary."""
    batch: tuple[int, int]
    """Sequences in a step, tokens in a sequence."""
    rounds: int
    compiled: bool = False
    """Whether our layers are compiled (``--compile-layers``); transformers' are not."""

    def flags(self) -> list[str]:
        """Of ``benchmark hf``."""
        names = ("layers", "hidden", "heads", "ffn", "vocab", "batch", "seq")
        flags = [f"--{name}={value}" for name, value in zip(names, (*self.shape, *self.batch), strict=True)]
        flags += ["--evaluation"] if self.work == "evaluation" else []
        return flags + (["--compile-layers"] if self.compiled else [])


_24X96, _12X256, _130M = (24, 96, 4, 256, 264), (12, 256, 8, 688, 264), (12, 768, 12, 2048, 32000)

ROWS = {
    "train_24x96_4x128": TableRow("training step", _24X96, (4, 128), 150),
    "train_24x96_32x128": TableRow("training step", _24X96, (32, 128), 40),
    "train_12x256_8x256": TableRow("training step", _12X256, (8, 256), 25),
    "train_130m_4x256": TableRow("training step", _130M, (4, 256), 8),
    "train_24x96_4x128_compiled": TableRow("training step", _24X96, (4, 128), 100, compiled=True),
    "train_24x96_32x128_compiled": TableRow("training step", _24X96, (32, 128), 25, compiled=True),
    "train_12x256_8x256_compiled": TableRow("training step", _12X256, (8, 256), 20, compiled=True),
    "evaluate_24x96": TableRow("evaluation", _24X96, (4, 128), 15),
    "evaluate_12x256": TableRow("evaluation", _12X256, (8, 256), 10),
    "evaluate_130m": TableRow("evaluation", _130M, (4, 256), 3),
}


def command(row: TableRow, folder: Path, name: str, rounds: int | None, threads: int, clock: str) -> list[str]:
    """The command line of one row."""
    measured = ["--rounds", str(rounds or row.rounds), "--threads", str(threads), "--clock", clock]
    files = ["--json", str(folder / f"{name}.json"), "--markdown", str(folder / f"{name}.md")]
    return [sys.executable, "-m", "megatron_cod.cli.benchmark", "hf", *row.flags(), *measured, *files]


def _cells(row: TableRow, result: dict[str, Any]) -> list[str]:
    found = {one["name"]: one for one in result["rows"] if one["part"] == "step"}
    work = f"{row.work}, --compile-layers" if row.compiled else row.work
    cells = [work, f"{row.shape[0]} x {row.shape[1]}", result["facts"]["batch"]]
    cells.append(f"{found['transformers']['tokens_per_s']:,.0f}")
    for arm in _ARMS:
        ratio = found[arm]["ratio"]
        cells.append(f"{ratio['median']:.3f} ({ratio['low']:.3f} .. {ratio['high']:.3f})")
    return cells


def markdown(results: dict[str, dict[str, Any]]) -> str:
    """The table of the rows that there are. results: by name, the JSON of each row."""
    head = [
        "work",
        "layers x hidden",
        "sequences x tokens",
        "transformers, tokens/s",
        *(f"{arm}: ratio" for arm in _ARMS),
    ]
    lines = [head, ["---"] * 3 + ["---:"] * 4, *(_cells(ROWS[name], result) for name, result in results.items())]
    facts = next(iter(results.values()))["facts"]
    below = f"{facts['dtype']}, {facts['device']}, threads {facts['threads']}, clock {facts['clock']}"
    return "\n".join(
        [*(f"| {' | '.join(line)} |" for line in lines), "", f"Time over transformers' time, {below}.", ""]
    )


def make_table(
    names: Sequence[str], folder: Path, rounds: int | None, threads: int, clock: str, *, dry_run: bool = False
) -> None:
    """Run what is missing in ``folder`` and write table.md and table.json. UserError where a row fails."""
    results: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(names, 1):
        words, path = command(ROWS[name], folder, name, rounds, threads, clock), folder / f"{name}.json"
        if dry_run:
            print(shlex.join(words))
            continue
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists():
            print(f"{number}/{len(names)} {name}: {path} is there, kept", flush=True)
        else:
            print(f"{number}/{len(names)} {name} ({datetime.now(UTC):%H:%M} UTC)", flush=True)
            if subprocess.run(words).returncode:
                raise UserError(f"{name} failed; repeat the command to resume there")
        results[name] = json.loads(path.read_text())
    if dry_run:
        return
    text = markdown(results)
    (folder / "table.md").write_text(text)
    (folder / "table.json").write_text(json.dumps(results, indent=1) + "\n")
    print(text)
    print(f"wrote {folder / 'table.md'} and {folder / 'table.json'}")
