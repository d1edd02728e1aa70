"""Interleaving and ratios, without a model and without a clock."""

import json

import pytest

from megatron_cod.benchmark.report import PARTS, Report, rows_of
from megatron_cod.benchmark.timing import Lap, interleave, ratio


def test_every_contestant_runs_once_a_round_in_changing_order():
    calls = []

    def step(name):
        def run():
            calls.append(name)
            return Lap(1.0, 0.25, 0.0)

        return run

    laps = interleave({name: step(name) for name in "abc"}, rounds=30, warmup=2)
    rounds = [tuple(calls[start : start + 3]) for start in range(0, len(calls), 3)]
    assert len(rounds) == 32
    assert all(sorted(one) == list("abc") for one in rounds)
    assert len(set(rounds)) == 6, "some order never came"
    assert {name: len(times) for name, times in laps.items()} == {"a": 30, "b": 30, "c": 30}


def test_ratio_is_computed_within_a_round():
    # The machine becomes ten times slower: a ratio of medians over unpaired steps would not see 1.1 everywhere.
    reference = [1.0, 2.0, 10.0, 3.0, 7.0]
    found = ratio([1.1 * time for time in reference], reference)
    assert found.median == pytest.approx(1.1)
    assert found.low == pytest.approx(1.1)
    assert found.high == pytest.approx(1.1)


def test_the_interval_holds_the_median_and_widens_with_noise():
    found = ratio([1.0, 1.2, 0.9, 1.1, 1.05, 0.95], [1.0] * 6)
    assert found.low < found.median < found.high
    assert found.low >= 0.9
    assert found.high <= 1.2


def test_rejects_ratio_without_pairs():
    with pytest.raises(ValueError, match="one time a round"):
        ratio([1.0], [1.0, 1.0])
    with pytest.raises(ValueError, match="one time a round"):
        ratio([], [])


def test_tables_put_the_reference_first_and_split_the_step():
    laps = {"ours": [Lap(0.3, 0.1, 5.0)] * 3, "theirs": [Lap(0.2, 0.1, 5.0)] * 3}
    report = Report("A title", "theirs", {"layers": 2}, rows_of(laps, "theirs", 100, tuple(PARTS)), laps, ["checked"])
    rows = {(row.name, row.part): row for row in report.rows}
    assert report.rows[0].name == "theirs"
    assert rows["ours", "step"].ratio.median == pytest.approx(1.5)
    assert rows["ours", "forward+backward"].ratio.median == pytest.approx(2.0)
    assert rows["ours", "optimizer"].ratio.median == pytest.approx(1.0)
    assert rows["theirs", "step"].tokens_per_s == pytest.approx(500)
    assert rows["ours", "step"].median_ms == pytest.approx(300)
    assert "checked" in report.text()
    assert "| ours | step | 300.00 | 333 | 1.5000 | 1.5000 .. 1.5000 |" in report.markdown()
    content = json.loads(report.json())
    assert len(content["laps"]["ours"]) == 3
    assert content["facts"] == {"layers": 2}
    assert set(content["versions"]) == {"python", "torch", "megatron-core", "transformers"}
