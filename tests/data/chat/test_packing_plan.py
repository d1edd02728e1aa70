"""Bin packing, and the order of rows over epochs: all that a resumed run's data position rests on."""

import time

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_cod.data.chat.packing import Epochs, Repeated, best_fit

LENGTHS = st.lists(st.integers(1, 20), min_size=1, max_size=60)


@settings(deadline=None)
@given(LENGTHS, st.booleans())
def test_every_sample_once_and_no_row_too_full(lengths, descending):
    items = sorted(lengths, reverse=True) if descending else lengths
    rows = best_fit(items, 20)
    assert sorted(item for row in rows for item in row) == list(range(len(items)))
    assert all(0 < sum(items[item] for item in row) <= 20 for row in rows)


@settings(deadline=None)
@given(LENGTHS)
def test_no_more_rows_than_the_simple_way(lengths):
    """Best fit by a search over all rows, as the textbook has it."""
    items = sorted(lengths, reverse=True)
    spaces: list[int] = []
    for length in items:
        fitting = [n for n, space in enumerate(spaces) if space >= length]
        if fitting:
            spaces[min(fitting, key=lambda n: spaces[n])] -= length
        else:
            spaces.append(20 - length)
    rows = best_fit(items, 20)
    assert sorted(20 - sum(items[i] for i in row) for row in rows) == sorted(spaces)


@settings(deadline=None)
@given(LENGTHS, st.integers(0, 9), st.booleans())
def test_each_epoch_has_every_sample_once(lengths, seed, pack):
    plan = Epochs(np.array(lengths), 20, pack=pack, seed=seed)
    for epoch in range(3):
        rows = [plan(epoch * plan.rows_an_epoch + place) for place in range(plan.rows_an_epoch)]
        assert sorted(n for row in rows for n in row) == list(range(len(lengths)))
        assert pack or all(len(row) == 1 for row in rows)


def some(**given_):
    lengths = np.random.default_rng(0).integers(1, 60, 200)
    return Epochs(lengths, 64, **{"pack": True, "seed": 1, **given_})


def test_epochs_and_seeds_are_shuffled_apart():
    plan = some()
    epochs = [[tuple(plan(e * plan.rows_an_epoch + n)) for n in range(plan.rows_an_epoch)] for e in range(2)]
    assert epochs[0] != epochs[1] and set(epochs[0]) != set(epochs[1])
    other = some(seed=2)
    assert [tuple(other(n)) for n in range(other.rows_an_epoch)] != epochs[0]


def test_a_row_depends_on_its_index_alone():
    """So a run that goes on at any row, also in another epoch, reads what the unbroken one would have."""
    whole = some()
    expected = [whole(n) for n in range(3 * whole.rows_an_epoch)]
    for start in (1, whole.rows_an_epoch - 1, 2 * whole.rows_an_epoch + 5):
        again = some()
        assert [again(n) for n in range(start, len(expected))] == expected[start:]
    backwards = some()
    assert [backwards(n) for n in reversed(range(len(expected)))] == expected[::-1]


def test_rows_behind_the_last_epoch_are_padding():
    plan = some(epochs=2)
    assert plan(2 * plan.rows_an_epoch - 1) and plan(2 * plan.rows_an_epoch) == []


def test_every_validation_reads_the_same():
    plan = some(seed=None)
    count = plan.rows_an_epoch + 3
    seen = Repeated(plan, count)
    first = [seen(n) for n in range(count)]
    assert first == [seen(count + n) for n in range(count)]
    assert sorted(n for row in first for n in row) == list(range(200)) and first[-3:] == [[]] * 3
    assert [Repeated(plan, 4)(n) for n in range(8)] == 2 * first[:4]


def test_packing_is_dense_and_quick():
    lengths = np.random.default_rng(0).geometric(1 / 200, 100_000).clip(1, 4096)
    began = time.monotonic()
    plan = Epochs(lengths, 4096, pack=True, seed=0)
    assert time.monotonic() - began < 20
    assert lengths.sum() / (plan.rows_an_epoch * 4096) > 0.99
