"""Runs of `evaluate.py`, and the results that they write."""

import json

from tests.distributed.launch import Ended, run_training_ranks

DOCUMENTS = ["--eval-mode", "document", "--stride", "20", "--eval-prefix", "eod"]


def evaluate(world: int, flags: list[str]) -> list[Ended]:
    ended = run_training_ranks(world, flags, entry="evaluate")
    assert [rank.code for rank in ended] == [0] * world, "\n----\n".join(rank.output[-2500:] for rank in ended)
    return ended


def result(folder, world: int, flags: list[str]) -> dict:
    """The JSON of an evaluation, its rows by name."""
    evaluate(world, [*flags, "--output", str(folder / "found.json")])
    found = json.loads((folder / "found.json").read_text())
    return {**found, "rows": {row["name"]: row for row in (*found["sets"], found["total"])}}
