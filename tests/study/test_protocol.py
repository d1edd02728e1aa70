"""The protocol on constructed cases: tuning, fresh seeds, paired statistics, and the mutants of it."""

import math

import pytest

from megatron_cod.study import scheduler, tables
from megatron_cod.study.jobs import Job
from megatron_cod.study.results import Result
from megatron_cod.study.scheduler import best_of, curve_of, finals_of, outlook, runnable
from megatron_cod.study.statistics import Difference, paired, student_quantile
from megatron_cod.study.tables import all_tables, comparison, raw_lines, read_raw, runs_csv
from megatron_cod.study.tuner import DIVERGED, Grid, Tuned, needed, sensitivity, tuned
from tests.study.cases import BEST, loss_of, result_of, run_all, study_of

GRID = Grid((2e-3, 4e-3, 8e-3), 2)


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ({}, [2e-3, 4e-3, 8e-3]),
        ({2e-3: 2.0, 8e-3: 2.0}, [4e-3]),
        ({2e-3: 2.0, 4e-3: 1.9, 8e-3: 2.0}, []),  # inside
        ({2e-3: 1.9, 4e-3: 2.0, 8e-3: 2.1}, [1e-3]),  # at the lower edge
        ({2e-3: 2.1, 4e-3: 2.0, 8e-3: 1.9}, [1.6e-2]),
        ({2e-3: 2.1, 4e-3: 2.0, 8e-3: 1.9, 1.6e-2: 1.8}, [3.2e-2]),
        ({2e-3: 2.1, 4e-3: 2.0, 8e-3: 1.9, 1.6e-2: 1.8, 3.2e-2: 1.7}, []),  # as far as it may grow
        ({2e-3: 2.0, 4e-3: 1.9, 8e-3: DIVERGED}, []),  # a rate that diverges is a worse one
        ({2e-3: DIVERGED, 4e-3: DIVERGED, 8e-3: DIVERGED}, [1e-3]),
    ],
)
def test_grid_grows_until_the_best_is_inside(curve, expected):
    assert needed(curve, GRID) == expected


def test_tuned_rate_and_its_edge():
    assert tuned({2e-3: 2.0, 4e-3: 1.9, 8e-3: 2.1}, GRID) == Tuned(4e-3, 1.9, None)
    assert tuned({2e-3: 2.0, 4e-3: 1.9}, GRID) is None
    at_edge = {2e-3: 2.1, 4e-3: 2.0, 8e-3: 1.9, 1.6e-2: 1.8, 3.2e-2: 1.7}
    assert tuned(at_edge, GRID) == Tuned(3.2e-2, 1.7, "highest rate tried")
    assert tuned(dict.fromkeys((2e-3, 4e-3, 8e-3, 1e-3, 5e-4), DIVERGED), GRID) is None


def test_whole_study_finds_the_known_optimum(tmp_path):
    study = study_of(tmp_path)
    results = run_all(study)
    (shape,) = study.shapes
    for arm, rate in BEST.items():
        best = best_of(study, results, shape, arm)
        assert best is not None and best.rate == pytest.approx(rate) and best.edge is None
        assert sorted(finals_of(study, results, shape, arm)) == [11, 12, 13]
    assert max(curve_of(study, results, shape, "lns")) == pytest.approx(6.4e-2)
    assert outlook(study, results).total == 0


def test_order_of_runs_does_not_depend_on_which_ended_first(tmp_path):
    study = study_of(tmp_path)
    first = runnable(study, {})
    assert [(job.arm, job.rate) for job in first[:4]] == [*((arm, 2e-3) for arm in study.arms), ("pre_ln+normal", 4e-3)]
    some = {job: result_of(job, loss_of(job)) for job in first[3:5]}
    assert runnable(study, some) == [job for job in first if job not in some]
    whole = run_all(study)
    assert runs_csv(study, dict(reversed(whole.items()))) == runs_csv(study, whole)


@pytest.mark.parametrize(("freedom", "quantile"), [(1, 12.7062), (2, 4.3027), (4, 2.7764), (9, 2.2622), (30, 2.0423)])
def test_student_quantiles_are_those_of_the_textbook(freedom, quantile):
    assert student_quantile(0.975, freedom) == pytest.approx(quantile, abs=1e-4)


def test_paired_interval_is_that_of_the_textbook():
    """Differences 1, 2 and 3: mean 2, standard error 1/sqrt(3), t 4.3027."""
    found = paired({1: 2.0, 2: 5.0, 3: 4.0}, {1: 1.0, 2: 3.0, 3: 1.0})
    assert found.mean == 2.0 and found.error == pytest.approx(1 / math.sqrt(3))
    assert found.interval == pytest.approx((2 - 4.30265 / math.sqrt(3), 2 + 4.30265 / math.sqrt(3)), abs=1e-4)


@pytest.mark.parametrize(
    ("values", "diverged", "verdict"),
    [
        ((-0.10, -0.11, -0.12), (0, 0), "better"),
        ((0.10, 0.11, 0.12), (0, 0), "worse"),
        ((-0.10, -0.30, 0.01), (0, 0), "no difference shown"),  # one seed of the other sign
        ((-0.01, -0.01, -0.50), (0, 0), "no difference shown"),  # all of one sign, within two standard errors
        ((-0.3,), (0, 0), "one seed: no verdict"),
        ((-0.3, -0.3), (1, 0), "diverged"),  # lower where it did not diverge, and yet not better
        ((0.3, 0.3), (0, 1), "the other diverged"),
        ((), (3, 3), "both diverged"),
    ],
)
def test_decisions_follow_the_intervals(values, diverged, verdict):
    assert Difference(values, diverged).verdict(2.0) == verdict


def test_sensitivity_is_the_mean_excess_over_the_shared_grid():
    curve = {1e-3: 9.0, 2e-3: 2.0, 4e-3: 1.8, 8e-3: DIVERGED}
    assert sensitivity(curve, (2e-3, 4e-3, 8e-3), start=5.0) == pytest.approx((0.2 + 0.0 + 3.2) / 3)
    assert sensitivity(curve, (2e-3, 1.6e-2), start=5.0) is None


def row_of(study, results, arm) -> dict[str, str]:
    table = comparison(study, results, study.shapes[0])
    return next(dict(zip(table.head, row, strict=True)) for row in table.rows if row[0] == arm)


def check_honest(study, results) -> None:
    """What a report must have; each mutant below breaks one of these."""
    table = comparison(study, results, study.shapes[0])
    assert [row[0] for row in table.rows] == list(study.arms)
    row = row_of(study, results, "lns")
    assert row["valid loss"] == "1.9700"  # the mean over the fresh seeds, which pairs set against the same shift
    cell = row["against pre_ln+normal"]
    assert cell.startswith("-0.0500 [-0.0550, -0.0450] (lr 0.032 against 0.004), better")
    assert row["tuned lr"] == "0.032" and row["std over seeds"] == "0.0280"


def test_report_of_the_known_study(tmp_path):
    study = study_of(tmp_path)
    check_honest(study, run_all(study))


def _best_seed(monkeypatch):
    true = scheduler.finals_of

    def best_seed(*arguments):
        found = true(*arguments)
        least = min(found.values(), key=lambda one: one.loss)
        return {seed: Result(**{**one.record(), "loss": least.loss}) for seed, one in found.items()}

    monkeypatch.setattr(tables, "finals_of", best_seed)


def _silent_about_rates(monkeypatch):
    monkeypatch.setattr(tables, "_rate", lambda rate: "tuned")


def _rate_of_another_arm(monkeypatch):
    true = scheduler.best_of
    monkeypatch.setattr(
        tables, "best_of", lambda study, results, shape, arm: true(study, results, shape, study.arms[0])
    )


def _drops_diverged(monkeypatch):
    true = tables._row
    monkeypatch.setattr(
        tables, "comparison", lambda study, results, shape: tables.Table("", ("arm",), tuple(
            true(study, results, shape, arm)[:1] for arm in study.arms
            if all(one.loss is not None for one in finals_of(study, results, shape, arm).values())
        ))
    )  # fmt: skip


@pytest.mark.parametrize("mutate", [_best_seed, _silent_about_rates, _rate_of_another_arm])
def test_mutants_of_the_comparison_are_caught(tmp_path, monkeypatch, mutate):
    study = study_of(tmp_path)
    results = run_all(study)
    mutate(monkeypatch)
    with pytest.raises(AssertionError):
        check_honest(study, results)


def check_keeps_diverged(study, results) -> None:
    table = tables.comparison(study, results, study.shapes[0])
    assert [row[0] for row in table.rows] == list(study.arms)
    row = next(row for row in table.rows if row[0] == "lns")
    assert "diverged" in row[4] and row[-1].endswith("diverged")


def test_diverged_arm_stays_in_the_table(tmp_path, monkeypatch):
    study = study_of(tmp_path)
    results = run_all(study, diverges=lambda job: job.arm == "lns" and job.seed == 12)
    check_keeps_diverged(study, results)
    assert len(tables.diverged_table(results).rows) == 1 and "loss nan at step 3" in runs_csv(study, results)
    _drops_diverged(monkeypatch)
    with pytest.raises(AssertionError):
        check_keeps_diverged(study, results)


def test_arm_that_diverges_at_every_rate_is_reported(tmp_path):
    study = study_of(tmp_path)
    results = run_all(study, diverges=lambda job: job.arm == "lns")
    row = row_of(study, results, "lns")
    assert row["tuned lr"] == "every rate diverged" and row["valid loss"] == "-"
    assert row["against pre_ln+normal"] == "not complete"
    assert len([job for job in results if job.arm == "lns"]) == 3 + 3  # the grid, and downwards as far as it may grow


def test_report_lists_missing_runs(tmp_path):
    study = study_of(tmp_path)
    first, second, *_ = runnable(study, {})
    results = {first: result_of(first, 2.0)}
    found = all_tables(study, results, {second: "exit code 1"})
    missing = next(table for table in found if table.title == "What was not run")
    assert missing.rows[0] == (second.shape.name, second.arm, "0.002", "1", "exit code 1")
    assert len(missing.rows) == 8 and missing.rows[1][-1] == "not run yet"


def test_raw_records_give_the_same_tables(tmp_path):
    study = study_of(tmp_path)
    results = run_all(study)
    again = read_raw(study, raw_lines(study, results).splitlines())
    assert again == results
    for one, other in zip(all_tables(study, results, {}), all_tables(study, again, {}), strict=True):
        assert one.markdown() == other.markdown()


def test_rates_are_tried_before_final_seeds(tmp_path):
    study = study_of(tmp_path, depths=[8, 32])
    kinds = [job.seed in study.seeds for job in runnable(study, {})]
    assert not any(kinds)
    results = {}
    for job in runnable(study, {}):
        if job.arm == "pre_ln+normal":
            results[job] = result_of(job, loss_of(job))
    kinds = [job.seed in study.seeds for job in runnable(study, results)]
    assert kinds == sorted(kinds) and sum(kinds) == 6
    assert Job(study.shapes[0], "pre_ln+normal", 4e-3, 11) in runnable(study, results)
