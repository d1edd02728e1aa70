"""Every norm scheme on an emulated device against the oracle, in the tolerances of the CPU."""

import pytest

from tests.cuda.on_device import on_device
from tests.distributed import scheme_runs
from tests.distributed.launch import run_ranks
from tests.distributed.mapping import Layout
from tests.distributed.oracle_runs import within_tolerance
from tests.distributed.scheme_runs import VARIANTS

ONE = Layout(flags=("--no-rope-fusion",))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.slow_except("lns")
def test_the_scheme_agrees_with_the_oracle(name):
    results = run_ranks(1, on_device, scheme_runs.worker, name, ONE, timeout=500)
    found = scheme_runs.against_the_oracle(results, name, ONE)
    print(name, found)
    assert within_tolerance(found), found


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layout", "mutate"), scheme_runs.MUTANTS[:1], ids=["sign_of_the_exponent"])
def test_detects_wrong_scheme(name, layout, mutate):
    results = run_ranks(1, on_device, scheme_runs.worker, name, ONE, mutate, timeout=500)
    assert not within_tolerance(scheme_runs.against_the_oracle(results, name, ONE))
