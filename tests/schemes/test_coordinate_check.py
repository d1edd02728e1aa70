"""CompleteP keeps the size of activations, and the best rate, over width and depth; plain Pre-LN does not."""

import pytest

from tests.schemes.coordinates import BASE, trained

COMPLETE_P, PRE_LN = ["complete_p", *BASE], ["pre_ln"]
BAND = 1.5
"""Largest over smallest size of the last block's stream, after 10 steps, that counts as flat."""
SMALL = ((64, 4), (128, 4), (64, 16))
GRID = tuple((width, depth) for width in (64, 128, 256, 512) for depth in (4, 8, 16, 32, 64))
RATES = tuple(2.0**power for power in range(-9, -3))


def spread(scheme: list[str], cells: tuple[tuple[int, int], ...]) -> float:
    """Largest over smallest size of the stream."""
    sizes = {cell: trained(scheme, *cell)["stream"] for cell in cells}
    print(scheme, {cell: round(size, 3) for cell, size in sizes.items()})
    return max(sizes.values()) / min(sizes.values())


@pytest.mark.slow
def test_activations_are_flat_over_a_few_sizes():
    assert spread(COMPLETE_P, SMALL) <= BAND


@pytest.mark.slow
def test_activations_are_flat_over_width_and_depth():
    assert spread(COMPLETE_P, GRID) <= BAND


@pytest.mark.slow
def test_activations_of_pre_ln_are_not():
    assert spread(PRE_LN, ((64, 4), (64, 64))) > BAND


@pytest.mark.slow
def test_the_best_rate_is_that_of_the_small_depth():
    """At depth 4 and 32, after 40 steps: the same, or the next of rates that double."""
    best = []
    for depth in (4, 32):
        losses = [trained(COMPLETE_P, 64, depth, rate, steps=40)["loss"] for rate in RATES]
        print(depth, dict(zip(RATES, [round(loss, 4) for loss in losses], strict=True)))
        best.append(losses.index(min(losses)))
    assert abs(best[0] - best[1]) <= 1
    assert all(0 < place < len(RATES) - 1 for place in best)
