"""Packed rows on Transformer Engine's own attention, in its ``thd`` format: each sample as if alone."""

from functools import partial

import pytest

from tests.distributed.launch import run_ranks
from tests.distributed.mapping import Layout
from tests.distributed.oracle_runs import SP
from tests.distributed.packing import differences, leaks, within, worker
from tests.te.flags import TE

LAYOUTS = [
    Layout(flags=TE),
    Layout(tp=2, flags=(*TE, *SP)),
    Layout(pp=2, flags=TE),
    Layout(dp=2, flags=(*TE, "--use-distributed-optimizer")),
]


@pytest.mark.slow_except("pp2 transformer-impl transformer_engine attention-backend unfused")
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_packed_samples_are_as_if_alone(layout):
    results = run_ranks(layout.world, worker, layout)
    for scheme in ("pre_ln", "lns"):
        found = differences(results, layout, scheme)
        print(layout.name, scheme, found)
        assert within(found), (scheme, found)


@pytest.mark.slow
def test_several_rows_a_micro_batch():
    layout = Layout(flags=TE)
    found = differences(run_ranks(1, partial(worker, micro=2), layout), layout, "lns")
    assert within(found), found


def test_a_leak_is_caught():
    layout = Layout(flags=TE)
    found = differences(run_ranks(1, partial(worker, mutate=leaks), layout), layout, "lns")
    assert found["loss"] > 1e-4, found
