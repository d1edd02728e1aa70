"""Checkpoint intervals and goodput against a job that fails at random."""

import random

import pytest

from megatron_cod.planner.goodput import Failures, daly_interval, goodput, young_interval

LLAMA = Failures(mean_between=54 * 24 * 3600 / 419, save=60.0, restart=600.0)
"""419 unexpected interruptions in 54 days (arXiv 2407.21783, section 3.3.4)."""


def simulated(failures: Failures, interval: float, wanted: float, seed: int) -> float:
    """Share of the time that was kept, of a job that trains ``wanted`` seconds between failures at random."""
    rng = random.Random(seed)
    clock = trained = 0.0
    fails = rng.expovariate(1 / failures.mean_between)

    def passes(seconds: float) -> bool:
        """Whether so much time passes without a failure."""
        nonlocal clock, fails
        if clock + seconds < fails:
            clock += seconds
            return True
        clock = fails
        fails = clock + rng.expovariate(1 / failures.mean_between)
        return False

    while trained < wanted:
        if passes(interval + failures.save):
            trained += interval
            continue
        while not passes(failures.restart):
            pass
    return trained / clock


@pytest.mark.parametrize(
    "failures",
    [LLAMA, Failures(3600.0, 30.0, 300.0), Failures(7200.0, 300.0, 900.0)],
    ids=["llama", "hour", "slow save"],
)
def test_goodput_is_that_of_a_job_that_fails_at_random(failures):
    interval = daly_interval(failures)
    shares = [simulated(failures, interval, 10_000 * failures.mean_between, seed) for seed in range(4)]
    assert sum(shares) / len(shares) == pytest.approx(goodput(failures, interval), rel=0.01)


@pytest.mark.parametrize("failures", [LLAMA, Failures(3600.0, 30.0, 300.0), Failures(1800.0, 200.0, 60.0)])
def test_no_other_interval_is_better(failures):
    """The formula's own maximum, found by trying."""
    best = max(goodput(failures, 10.0 * count) for count in range(1, 3000))
    assert goodput(failures, daly_interval(failures)) == pytest.approx(best, rel=2e-3)
    assert goodput(failures, young_interval(failures)) <= best
    for factor in (0.3, 3.0):
        assert goodput(failures, factor * daly_interval(failures)) < goodput(failures, daly_interval(failures))


def test_more_failures_leave_less():
    shares = [
        goodput(one, daly_interval(one)) for one in (Failures(mean, 60.0, 600.0) for mean in (1e7, 1e5, 1e4, 1e3))
    ]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.99
    assert goodput(Failures(1.0, 60.0, 600.0), 1000.0) == 0.0


def test_saving_that_takes_longer_than_failures_come():
    assert daly_interval(Failures(100.0, 300.0, 1.0)) == 100.0
