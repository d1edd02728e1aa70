"""Steps and samples by the formula against Megatron's own calculator; what cannot be read; tokens turned into samples."""

import argparse
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_cod.common.numbers import parse_count
from megatron_cod.training.flags.batch_sizes import BatchSizes, batch_sizes, ramp_up
from megatron_cod.training.flags.command_line import resolve_command_line
from megatron_cod.training.flags.schedule_checks import check_batches, check_schedule
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("250000", 250_000),
        ("250K", 250_000),
        ("30m", 30_000_000),
        ("2.5B", 2_500_000_000),
        ("1T", 10**12),
        ("1e9", 10**9),
    ],
)
def test_parses_counts(text, value):
    assert parse_count(text) == value


@pytest.mark.parametrize("text", ["", "K", "0", "-3", "1.5", "0.0001K", "nan", "inf", "12X", "1_000Q"])
def test_rejects_invalid_counts(text):
    with pytest.raises(ValueError, match=re.escape(f"{text!r} is not a number of at least 1")):
        parse_count(text)


@pytest.mark.parametrize("text", ["9223372036854775808", "1e300", "1" + "0" * 400, "9e9999"])
def test_rejects_counts_that_no_tensor_holds(text):
    with pytest.raises(ValueError, match="is too large: at most 9,223,372,036,854,775,807"):
        parse_count(text)


SIZES = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 5)), min_size=1, max_size=4)


@given(SIZES, st.integers(0, 60), st.integers(0, 30), st.integers(1, 200))
@settings(max_examples=200, deadline=None)
def test_equals_megatrons_calculator(drawn, steps, start, samples):
    from megatron.core.num_microbatches_calculator import StepBatchsizeNumMicroBatchesCalculator

    firsts, size, stages = 0, 0, []
    for gap, more in drawn:
        size += more
        stages.append((firsts, size))
        firsts += gap
    schedule = " ".join(f"{first * 32}:{size}" for first, size in stages)
    theirs = StepBatchsizeNumMicroBatchesCalculator(1, 1, False, 1, schedule, 32)
    ours = batch_sizes(argparse.Namespace(step_batch_size_schedule=schedule, seq_length=32, global_batch_size=None))
    assert ours.stages == tuple(stages)

    consumed = start
    for _ in range(steps):
        theirs.update(consumed, False)
        consumed += theirs.get_current_global_batch_size()
    assert ours.after(steps, start) == consumed

    made = consumed = 0
    while consumed < samples:
        theirs.update(consumed, False)
        made, consumed = made + 1, consumed + theirs.get_current_global_batch_size()
    assert ours.until(samples) == (made, consumed)


def earlier_megatron(start: int, increment: int, total: float, full: int, consumed: int) -> int:
    """The batch size by the formula that Megatron had before 0.19 for --rampup-batch-size."""
    if consumed > total:
        return full
    return start + int(consumed / (total / ((full - start) // increment))) * increment


@pytest.mark.parametrize(("start", "increment", "total", "full"), [(4, 4, 96, 16), (2, 2, 25, 12), (8, 8, 3, 16)])
def test_a_ramp_up_is_that_of_earlier_versions(start, increment, total, full):
    schedule = ramp_up([start, increment, total], full, 128)
    sizes = batch_sizes(argparse.Namespace(step_batch_size_schedule=schedule, seq_length=128, global_batch_size=None))
    found = [sizes.after(1, consumed) - consumed for consumed in range(2 * total)]
    assert found == [earlier_megatron(start, increment, total, full, consumed) for consumed in range(2 * total)]


BASE = ["--seq-length", "100", "--micro-batch-size", "2", "--lr", "1e-3"]
LENGTHS = {
    "rounded up to whole steps": (
        ["--global-batch-size", "8", "--train-tokens", "10K"],
        {"train_samples": 104, "train_iters": None},
    ),
    "warm-up in tokens, decay in steps": (
        [
            *("--global-batch-size", "8", "--train-tokens", "1M", "--lr-warmup-tokens", "50K"),
            "--lr-decay-iters",
            "1000",
        ],
        {"train_samples": 10_000, "lr_warmup_samples": 500, "lr_decay_samples": 8000, "lr_decay_iters": None},
    ),
    "steps, with a decay in tokens": (
        ["--global-batch-size", "8", "--train-iters", "50", "--lr-decay-style", "WSD", "--lr-wsd-decay-tokens", "10K"],
        {"train_samples": 400, "train_iters": None, "lr_wsd_decay_samples": 100},
    ),
    "growing batches": (
        ["--step-batch-size-schedule", "0:4 1K:8", "--train-tokens", "3K"],
        {"train_samples": 36, "eval_global_batch_size": 8, "global_batch_size": None},
    ),
    "a ramp-up": (
        ["--global-batch-size", "8", "--rampup-batch-size", "2", "2", "12", "--train-samples", "20"],
        {"step_batch_size_schedule": "0:2 400:4 800:6 1200:8", "train_samples": 22, "rampup_batch_size": None},
    ),
}


@pytest.mark.parametrize(("flags", "expected"), LENGTHS.values(), ids=LENGTHS)
def test_sets_megatrons_flags(flags, expected):
    raw, resolved = resolve_command_line([*BASE, *flags])
    assert {name: getattr(raw, name) for name in expected} == expected
    check_schedule(raw)
    for flag, value in zip(flags[::2], flags[1::2], strict=False):
        if flag.endswith("-tokens"):  # what reproduces the run is what was asked
            assert f"{flag.removeprefix('--')}: {parse_count(value)}" in resolved
    assert "train-samples" not in resolved or "--train-samples" in flags


WRONG = {
    "two lengths": (
        ["--train-tokens", "1M", "--train-iters", "9"],
        r"--train-tokens and --train-iters both set the same",
    ),
    "two of Megatron's": (
        ["--train-samples", "80", "--train-iters", "9"],
        r"--train-iters 9 and --train-samples 80 both",
    ),
    "two warm-ups": (
        ["--train-tokens", "1M", "--lr-warmup-tokens", "1K", "--lr-warmup-fraction", "0.1"],
        r"--lr-warmup-tokens and --lr-warmup-fraction both set the same",
    ),
    "no number": (["--train-tokens", "many"], r"--train-tokens: 'many' is not a number of at least 1, such as"),
    "no length": ([], r"missing: give --train-tokens, --train-iters or --train-samples"),
    "warm-up longer than the run": (
        ["--train-tokens", "10K", "--lr-warmup-tokens", "10.4K"],
        r"--lr-warmup-samples 104 .* 104 samples",
    ),
    "warm-up in steps longer than the run": (
        ["--train-iters", "10", "--lr-warmup-iters", "10"],
        r"--lr-warmup-iters 10 .* 10 iterations",
    ),
    "all of it warm-up": (
        ["--train-iters", "10", "--lr-warmup-fraction", "1"],
        r"--lr-warmup-fraction 1.0 must be less",
    ),
    "a negative fraction": (
        ["--train-iters", "10", "--lr-warmup-fraction", "-0.5"],
        r"--lr-warmup-fraction -0.5 must not be negative",
    ),
    "no fraction": (
        ["--train-iters", "10", "--lr-warmup-fraction", "nan"],
        r"--lr-warmup-fraction nan must not be neg",
    ),
    "negative warm-up": (
        ["--train-iters", "10", "--lr-warmup-iters", "-3"],
        r"--lr-warmup-iters -3 must not be negative",
    ),
    "negative warm-up, no length": (["--lr-warmup-samples", "-3"], r"--lr-warmup-samples -3 must not be negative"),
    "negative length": (["--train-samples", "-3"], r"--train-samples -3 must not be negative"),
    "negative decay": (
        ["--train-iters", "10", "--lr-decay-iters", "-3"],
        r"--lr-decay-iters -3 must not be negative",
    ),
    "phases that do not fit": (
        [
            *("--train-tokens", "10K", "--lr-decay-style", "WSD", "--lr-warmup-tokens", "4K"),
            "--lr-wsd-decay-tokens",
            "6.5K",
        ],
        r"--lr-wsd-decay-samples 65 .* 40 .* 104 samples",
    ),
    "no last phase": (
        ["--train-iters", "9", "--lr-decay-style", "WSD"],
        r"--lr-decay-style WSD: give --lr-wsd-decay-it",
    ),
    "a last phase of another style": (
        ["--train-iters", "9", "--lr-wsd-decay-iters", "3"],
        r"--lr-wsd-decay-iters does nothing under --lr-decay-style linear",
    ),
    "other units": (
        ["--train-samples", "80", "--lr-warmup-iters", "3"],
        r"--lr-warmup-iters .*--train-samples; give --lr-warmup-samples or --lr-warmup-tokens",
    ),
    "rates": (["--train-iters", "9", "--min-lr", "1"], r"--min-lr 1.0 is larger than --lr 0.001"),
    "a batch that does not divide": (
        ["--train-iters", "9", "--global-batch-size", "6"],
        r"--global-batch-size 6 .*--micro-batch-size 2 x 2 ",
    ),
    "a stage that does not divide": (
        ["--unset-batch", "--step-batch-size-schedule", "0:4 1K:6", "--train-tokens", "9K"],
        r"--step-batch-size-schedule, 6 .*--micro-batch-size 2 x 2 ",
    ),
    "batches that shrink": (
        ["--unset-batch", "--step-batch-size-schedule", "0:8 1K:4", "--train-tokens", "9K"],
        r"Megatron's batch sizes cannot shrink, from 8 to 4",
    ),
    "a schedule that begins later": (
        ["--unset-batch", "--step-batch-size-schedule", "1K:4", "--train-tokens", "9K"],
        r"does not begin at 0 tokens",
    ),
    "no schedule": (
        ["--unset-batch", "--step-batch-size-schedule", "4", "--train-tokens", "9K"],
        r"'4' is not TOKENS:BA",
    ),
    "two batch sizes": (
        ["--step-batch-size-schedule", "0:4", "--train-tokens", "9K"],
        r"both set how large a batch is",
    ),
    "steps of growing size": (
        ["--unset-batch", "--step-batch-size-schedule", "0:4 1K:8", "--train-iters", "9"],
        r"--train-iters .*: give --train-tokens or --train-samples",
    ),
    "an odd ramp": (
        ["--rampup-batch-size", "3", "2", "100", "--train-tokens", "9K"],
        r"--rampup-batch-size 3 2 100: --global-batch-size 8 .* increments",
    ),
    "phases and tokens": (
        ["--train-tokens", "9K", "--phase-transition-iterations", "3"],
        r"--phase-transition-iterations .*--train-samples or --train-iters",
    ),
}


@pytest.mark.parametrize(("flags", "pattern"), WRONG.values(), ids=WRONG)
def test_rejects_invalid_batches(flags, pattern):
    batch = [] if "--unset-batch" in flags else ["--global-batch-size", "8"]
    with pytest.raises(ValueError, match=pattern):
        raw, _ = resolve_command_line([*BASE, *batch, *(flag for flag in flags if flag != "--unset-batch")])
        check_batches(raw, 2)
        check_schedule(raw)


@pytest.mark.parametrize(
    ("recipe", "flags", "expected"),
    [
        ("debug", ["--train-tokens", "51.2K"], {"train_samples": 400, "train_iters": None, "lr_warmup_fraction": 0.1}),
        ("debug", ["--train-samples", "400"], {"train_samples": 400, "train_iters": None}),
        ("debug_wsd", ["--train-iters", "50"], {"train_samples": 200, "lr_warmup_samples": 100, "train_tokens": None}),
        ("debug_wsd", ["--lr-warmup-fraction", "0.5"], {"lr_warmup_fraction": 0.5, "lr_warmup_samples": 0}),
        (
            "debug",
            ["--step-batch-size-schedule", "0:4 1K:8", "--train-samples", "400"],
            {"global_batch_size": None, "train_samples": 400},
        ),
    ],
)
def test_the_command_line_wins_in_any_unit(recipe, flags, expected):
    raw, _ = resolve_command_line(["--recipe", str(ROOT / "recipes" / f"{recipe}.yaml"), *flags])
    assert {name: getattr(raw, name) for name in expected} == expected


def test_stages_are_skipped_whole():
    """A step may reach past a stage of one sample."""
    sizes = BatchSizes(((0, 4), (5, 6), (6, 8)))
    assert [sizes.after(n) for n in range(4)] == [0, 4, 8, 16]
    assert sizes.until(9) == (3, 16)
