"""Every norm scheme on an emulated device against the oracle, in the tolerances of the CPU."""

import pytest

from tests.cuda.on_device import on_device
from tests.distributed import test_schemes
from tests.distributed.launch import run_ranks
from tests.distributed.mapping import Layout
from tests.distributed.test_oracle import within_tolerance
from tests.distributed.test_schemes import VARIANTS

ONE = Layout(flags=("--no-rope-fusion",))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.slow_except("lns")
def test_the_scheme_agrees_with_the_oracle(name):
    results = run_ranks(1, on_device, test_schemes.worker, name, ONE, timeout=500)
    found = test_schemes.against_the_oracle(results, name, ONE)
    print(name, found)
    assert within_tolerance(found), found


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layout", "mutate"), test_schemes.MUTANTS[:1], ids=["sign_of_the_exponent"])
def test_a_wrong_scheme_is_caught(name, layout, mutate):
    results = run_ranks(1, on_device, test_schemes.worker, name, ONE, mutate, timeout=500)
    assert not within_tolerance(test_schemes.against_the_oracle(results, name, ONE))
