"""The published runs: docs/planner.md has the table that the model gives, the fit is what the constants are, mutants differ."""

import re
from statistics import median

import pytest

from megatron_cod.planner import layer, stages, update
from megatron_cod.planner.machine import BUILT_IN
from megatron_cod.planner.published import compared, fit_products, published_table, rank_correlation
from megatron_cod.planner.published_rows import PUBLISHED, is_fitted
from tests.conftest import ROOT
from tests.planner.runs import published

PAGE = ROOT / "docs" / "planner.md"


def test_the_page_has_the_table_of_the_model():
    text = PAGE.read_text()
    table = re.search(r"<!-- published: begin -->\n(.*?)\n<!-- published: end -->", text, re.DOTALL)
    assert table is not None
    assert table[1] == published_table(published())


def errors(half: bool, experts: bool = False) -> list[float]:
    found = [one for one in published() if is_fitted(one.row) == half and bool(one.args.num_experts) == experts]
    return [abs(compared(one.row, one.args).error) for one in found]


def check_held_out() -> None:
    """What the page states of dense models."""
    found = errors(half=False)
    assert len(found) == 11
    assert median(found) <= 0.05
    assert max(found) <= 0.12


def test_dense_runs_that_were_not_fitted_are_predicted():
    check_held_out()


@pytest.mark.parametrize(
    ("module", "name"), [(layer, "core_attention"), (layer, "norms"), (layer, "mlp"), (stages, "recomputed_share")]
)
def test_published_runs_detect_a_part_of_the_model_that_is_missing(monkeypatch, module, name):
    nothing = layer.Cost(layer.Split(), layer.Split())
    monkeypatch.setattr(module, name, lambda *_: nothing if module is layer else 0.0)
    if name == "norms":  # 2% of a step: the page's figures differ, the bounds do not
        assert [one.error for one in published()] != [compared(one.row, one.args).error for one in published()]
        return
    with pytest.raises(AssertionError):
        check_held_out()


def test_published_runs_detect_collectives_that_are_missing(monkeypatch):
    monkeypatch.setattr(layer, "gather", lambda *_: 0.0)
    monkeypatch.setattr(layer, "all_reduce", lambda *_: 0.0)
    with pytest.raises(AssertionError):
        check_held_out()


def test_published_runs_detect_gradients_summed_in_each_micro_batch(monkeypatch):
    real = update._exchange

    def in_each(to, group, size, collective):
        return real(to, group, size, collective) * to.args.global_batch_size / to.args.data_parallel_size

    monkeypatch.setattr(update, "_exchange", in_each)
    with pytest.raises(AssertionError):
        check_held_out()


def test_halves_are_every_second_model():
    for machine in {row.machine for row in PUBLISHED}:
        rows = [row for row in PUBLISHED if row.machine == machine]
        halves = {row.model: is_fitted(row) for row in rows}
        assert list(halves.values()) == [place % 2 == 0 for place in range(len(halves))]
    assert len({row.model for row in PUBLISHED if row.machine == "a100_80gb"}) == 10
    assert len({row.model for row in PUBLISHED if row.machine == "h100"}) >= 5


def test_rank_correlation():
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 40]) == 1
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == -1
    assert rank_correlation([1, 2, 3], [1, 3, 2]) == 0.5


@pytest.mark.slow
@pytest.mark.parametrize("machine", ["a100_80gb", "h100"])
def test_efficiency_of_products_is_the_fit_of_the_fitted_half(machine):
    rows = [(one.row, one.args) for one in published() if one.row.machine == machine and is_fitted(one.row)]
    assert fit_products(machine, rows) == pytest.approx(BUILT_IN[machine].efficiency.products)
