"""What tools/inspect_data.py says of a step is what training is fed at that step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from megatron_cod.data.preprocessing.run import PreprocessJob, preprocess
from megatron_cod.data.sample_corpus import sample_corpus_path
from megatron_cod.data.tokenizers.choice import TokenizerChoice
from tests.conftest import ROOT, TINY
from tests.distributed.launch import run_ranks, run_training_ranks

STEPS = 7


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> list[str]:
    """Three datasets of different text."""
    folder = tmp_path_factory.mktemp("sources")
    lines = sample_corpus_path().read_text().splitlines()
    prefixes = []
    for number in range(3):
        source = folder / f"{number}.jsonl"
        text = json.loads(lines[number])["text"]
        texts = [text[start : start + 800] for start in range(0, 24_000, 800)]
        source.write_text("".join(json.dumps({"text": part}) + "\n" for part in texts))
        choice = TokenizerChoice("ByteLevelTokenizer")
        preprocess(PreprocessJob([str(source)], str(folder / f"{number}"), choice, append_eod=True))
        prefixes.append(str(folder / f"{number}_text_document"))
    return prefixes


def flags_of(sources: list[str], *more: str) -> list[str]:
    one, two, three = sources
    blend = ["--train-data-path", "0.6", one, "0.3", two, "0.1", three, "--valid-data-path", one]
    return [*TINY, *blend, "--train-iters", str(STEPS), "--eval-iters", "0", "--global-batch-size", "8", *more]


def keep_what_is_fed(folder: str) -> None:
    """Write down the tokens of every batch of this rank."""
    from megatron_cod.training.data import batches

    get_batch, calls = batches.get_batch, iter(range(1000))

    def watched(*arguments: object, **named: object) -> object:
        batch = get_batch(*arguments, **named)
        np.save(f"{folder}/{os.environ['RANK']}-{next(calls)}.npy", batch["tokens"].numpy())
        return batch

    batches.get_batch = watched


def rows_of(_rank: int, flags: list[str], world: int, steps: int) -> dict:
    from megatron_cod.training.start.loader_preview import Feed

    feed = Feed(flags, world)
    rows = {
        (step, replica): list(feed.rows(step, replica))
        for step in range(1, steps + 1)
        for replica in range(feed.replicas)
    }
    return {
        "tokens": {place: np.stack([row.tokens for row in found]) for place, found in rows.items()},
        "sources": {place: [row.source for row in found] for place, found in rows.items()},
        "asked": feed.asked_shares(),
        "shares": feed.shares(steps),
        "names": feed.sources(),
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        [],
        pytest.param(["--dataloader-type", "cyclic"], marks=pytest.mark.slow),
        pytest.param(["--seed", "77"], marks=pytest.mark.slow),
    ],
    ids=["single", "cyclic", "seed"],
)
def test_the_rows_are_those_of_a_run(sources: list[str], tmp_path: Path, more: list[str]) -> None:
    flags = flags_of(sources, *more)
    ended = run_training_ranks(2, flags, before=partial(keep_what_is_fed, str(tmp_path)))
    assert [rank.code for rank in ended] == [0, 0], ended[0].output[-2000:]
    [said] = run_ranks(1, rows_of, flags, 2, STEPS)
    assert len(list(tmp_path.iterdir())) == 2 * STEPS * 2
    for (step, replica), tokens in said["tokens"].items():
        fed = [np.load(tmp_path / f"{replica}-{2 * (step - 1) + number}.npy") for number in range(2)]
        assert np.array_equal(np.concatenate(fed), tokens), (step, replica)
    if not more:
        other = run_ranks(1, rows_of, flags_of(sources, "--seed", "77"), 2, 1)[0]["tokens"]
        assert not np.array_equal(other[1, 0], said["tokens"][1, 0])


def test_prints_shares_of_a_blend(sources: list[str]) -> None:
    [said] = run_ranks(1, rows_of, flags_of(sources), 2, STEPS)
    assert said["asked"] == pytest.approx([0.6, 0.3, 0.1])
    assert said["names"] == sources
    rows = [name for found in said["sources"].values() for name in found]
    assert len(rows) == STEPS * 8
    counted = [rows.count(name) / len(rows) for name in sources]
    assert said["shares"] == pytest.approx(counted)
    # A blend is never more than a sample off its shares.
    assert all(abs(actual - asked) <= 1 / len(rows) for actual, asked in zip(counted, said["asked"], strict=True))


@pytest.mark.slow
def test_program_prints_datasets_steps_and_shares(sources: list[str], tmp_path: Path) -> None:
    def inspect(*arguments: str, code: int = 0) -> str:
        command = [sys.executable, str(ROOT / "tools" / "inspect_data.py"), *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr

    output = inspect(sources[0], "--samples", "1", "--characters", "40")
    assert "30 documents, 24,030 tokens of uint16" in output
    assert "801 tokens" in output and "100.0% of tokens" in output
    launch = ["--world-size", "2", "--", *flags_of(sources)]
    output = inspect("--step", "3", "--dp-rank", "1", "--shares", "7", *launch)
    assert "step 3, data-parallel replica 1 of 2: 4 rows" in output
    assert output.count("32 tokens, 32 in the loss") == 4
    assert "60.000%" in output and f"  {sources[2]}\n" in output
    assert "none does not exist" in inspect(str(tmp_path / "none"), code=2)


@pytest.mark.parametrize(
    ("step", "replica", "says"),
    [
        (8, 0, "--step 8 does not exist: the run has steps 1 to 7"),
        (1, 2, "--dp-rank 2 does not exist: the launch has 2"),
    ],
)
def test_rejects_unknown_steps_and_replicas(sources: list[str], step: int, replica: int, says: str) -> None:
    assert says in run_ranks(1, complaint, flags_of(sources), 2, step, replica)[0]


def complaint(_rank: int, flags: list[str], world: int, step: int, replica: int) -> str:
    from megatron_cod.training.start.loader_preview import Feed

    with pytest.raises(ValueError) as caught:
        list(Feed(flags, world).rows(step, replica))
    return str(caught.value)
