"""Launches of a layer on the torch backend, bounded by constants: a change that adds a launch fails here.

60M Llama blocks, bf16, one micro-batch. A launch is a kernel, a product of matrices or a memset.
"""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest

from tests.conftest import ROOT
from tests.cuda.counted import BACKWARD, FORWARD, LLAMA_60M, OPTIMIZER, Counts, count, table

FORWARD_AT_MOST, BACKWARD_AT_MOST = 13, 28
OPTIMIZER_AT_MOST = 22
"""Of a step of four layers: nothing in it is launched once a parameter."""


@cache
def counted(*flags: str, mutant: str = "") -> Counts:
    return count(Path(mkdtemp()), *LLAMA_60M, *flags, mutant=mutant)


def named(counts: Counts, phase: str, part: str) -> int:
    return sum(number for name, number in counts.of_a_layer(phase).items() if part in name)


def test_a_layer_of_lns_launches_no_more_than_this():
    counts = counted()
    forward, backward = counts.of_a_layer(FORWARD), counts.of_a_layer(BACKWARD)
    assert forward.total() <= FORWARD_AT_MOST, forward
    assert backward.total() <= BACKWARD_AT_MOST, backward
    assert counts.whole.launches[OPTIMIZER].total() <= OPTIMIZER_AT_MOST, counts.whole.launches[OPTIMIZER]


def test_one_kernel_each_way_rotates_queries_and_keys():
    """Compiled; cos and sin are tables, which no layer computes."""
    for phase in (FORWARD, BACKWARD):
        assert named(counted(), phase, "flip") == 1
        assert named(counted(), phase, "cos") == named(counted(), phase, "sin_kernel") == 0


def products(counts: Counts, phase: str) -> list[str]:
    """Kernels of a layer that multiply by a number, with their blocks."""
    return [name.rsplit(" blocks ")[-1] for name in counts.of_a_layer(phase).elements() if "MulFunctor" in name]


def test_a_layer_multiplies_nothing_larger_than_gamma():
    for phase in (FORWARD, BACKWARD):
        assert products(counted(), phase) == ["1", "1"], phase


@pytest.mark.slow
def test_lns_adds_two_products_of_the_width_each_way():
    """s times gamma, a vector of h, of two norms; and their gradients. One block of a kernel has more elements than h."""
    lns, pre_ln = counted(), counted("--norm-scheme", "pre_ln")
    for phase in (FORWARD, BACKWARD):
        more, fewer = lns.of_a_layer(phase), pre_ln.of_a_layer(phase)
        assert not fewer - more
        assert (more - fewer).total() == 2
        assert all("MulFunctor" in name and name.endswith(" blocks 1") for name in more - fewer), more - fewer


MUTANTS = {
    "scales_activations": set(),
    "watches_every_layer": {FORWARD},
    "turns_twice": {FORWARD, BACKWARD},
    "megatrons_rotary": {FORWARD, BACKWARD},
    "one_norm_a_parameter": {OPTIMIZER},
}


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS)
def test_detects_mutant(mutant):
    """``scales_activations`` launches as often as s times gamma; only the size differs."""
    counts = counted(mutant=mutant)
    if mutant == "scales_activations":
        assert "1" not in products(counts, FORWARD) and len(products(counts, FORWARD)) == 2
        return
    found = {
        phase
        for phase, most in ((FORWARD, FORWARD_AT_MOST), (BACKWARD, BACKWARD_AT_MOST))
        if counts.of_a_layer(phase).total() > most
    }
    if counts.whole.launches[OPTIMIZER].total() > OPTIMIZER_AT_MOST:
        found.add(OPTIMIZER)
    assert found == MUTANTS[mutant]


@pytest.mark.slow
def test_table_of_docs_is_counted():
    rows = table({"`pre_ln`": counted("--norm-scheme", "pre_ln"), "`lns`": counted()})
    assert rows in (ROOT / "docs" / "performance.md").read_text(), f"docs/performance.md should have\n{rows}"
