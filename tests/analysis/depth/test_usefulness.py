"""Usefulness: the linear maps against least squares, known models, and groups of blocks under a bound of memory."""

import pytest
import torch

from megatron_cod.analysis.depth import measure, usefulness
from megatron_cod.analysis.depth.measure import Budget
from megatron_cod.analysis.depth.progress import Progress
from megatron_cod.errors import UserError
from tests.analysis.depth.toys import H, Linear, Mlp, Toy, everything, mlps, tokens, traced


def test_a_linear_block_is_not_useful_and_a_bent_one_is():
    generator = torch.Generator().manual_seed(5)
    linear = Linear(0.5 * torch.randn(H, H, generator=generator))
    bent = Mlp(3.0, generator)
    toy = Toy([linear, bent, Linear(0.1 * torch.eye(H))])
    # A head that the bent block matters to: it says what the whole model says.
    text = tokens(6, 16)
    with torch.no_grad():
        text[:, 1:] = toy(text[:, :-1]).argmax(-1)
    found = everything(toy, text)["usefulness"]
    assert found["loss"][0] == pytest.approx(everything(toy, text)["loss"]["mean"], rel=1e-3)
    assert found["useful"] == [False, found["useful"][1], False]
    assert found["share"] == sum(found["useful"]) / 3


def test_least_squares_against_torch():
    fit = usefulness.LinearFit()
    x = torch.randn(2, 60, H)
    y = x + torch.tanh(x) @ torch.randn(H, H) + 0.3
    fit.add(x, y)
    flat = torch.cat([x.flatten(0, 1), torch.ones(120, 1)], 1).double()
    right = torch.linalg.lstsq(flat, (y - x).flatten(0, 1).double()).solution
    assert (fit.solve() - right).abs().max() <= 1e-4


def test_too_few_tokens_to_fit_are_refused():
    with pytest.raises(ValueError, match="12 tokens are too few to fit a linear map: give --fit-tokens 18 or more"):
        everything(Toy(mlps(1)), fit=[tokens(1, 12)])


def test_groups_of_blocks_fit_into_the_memory():
    size = H * H
    assert usefulness.groups_of_blocks(5, H, (24 + 5 * 16) * size) == [range(1, 6)]
    assert usefulness.groups_of_blocks(5, H, (24 + 2 * 16) * size) == [range(1, 3), range(3, 5), range(5, 6)]
    assert [len(group) for group in usefulness.groups_of_blocks(32, 4096, 4e9)] == [13, 13, 6]
    with pytest.raises(UserError, match=r"one block of hidden size 4096 takes 0\.67 GB: give --max-memory"):
        usefulness.groups_of_blocks(32, 4096, 0.6e9)


def test_fitting_in_groups_changes_no_figure(monkeypatch):
    """At most two blocks' sums are held at a time."""
    held, most = set(), 0
    add, solve = usefulness.LinearFit.add, usefulness.LinearFit.solve

    def adding(self, *streams):
        nonlocal most
        held.add(self)
        most = max(most, len(held))
        return add(self, *streams)

    def solving(self):
        found = solve(self)
        held.discard(self)
        assert self._gram is None
        return found

    monkeypatch.setattr(usefulness.LinearFit, "add", adding)
    monkeypatch.setattr(usefulness.LinearFit, "solve", solving)
    toy, passes = Toy(mlps(5)), []
    whole = everything(toy)["usefulness"]
    assert most == 5
    most = 0
    budget = Budget([tokens()], [tokens(20, 20, 9)], max_bytes=(24 + 2 * 16) * H * H)
    found = measure.measure(traced(toy), budget, ["usefulness"], lambda what, count: passes.append((what, count)))
    assert found["usefulness"] == whole and most == 2
    assert passes.count(("fitting linear maps", 400)) == 3 and len(set(whole["loss"])) == 5
    with Progress(budget, traced(toy), ["usefulness"]) as progress:
        for one in passes:
            progress.step(*one)
        assert progress._pace.share == 1


def test_detects_fit_on_evaluated_tokens(monkeypatch):
    """The mutant fits and judges on the same tokens: with few of them the fit then flatters the linear map."""
    toy, text = Toy(mlps(2, scale=1.0)), tokens(2, 12)
    honest = everything(toy, text, fit=[tokens(2, 12, 77)])["usefulness"]["loss"]
    flattered = everything(toy, text, fit=[text])["usefulness"]["loss"]
    assert max(abs(a - b) for a, b in zip(honest, flattered, strict=True)) > 1e-2
