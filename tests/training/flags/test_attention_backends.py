"""``--attention-backend`` on the torch backend: each value trains with the losses of the default, or is refused."""

import re

import pytest
from megatron.core.transformer.enums import AttnBackend

from tests.distributed.launch import run_training_ranks
from tests.rehearsal.jobs import SMALL

STEPS = ["--num-layers", "2", "--train-iters", "3", "--log-interval", "1", "--eval-iters", "0"]
RUNS = {backend.name for backend in AttnBackend} - {"local"}
REFUSED = {"local"}


def losses(*flags: str) -> list[float]:
    ended = run_training_ranks(1, [*SMALL, *STEPS, *flags], timeout=120)[0]
    assert ended.code == 0, ended.output[-1500:]
    return [float(one) for one in re.findall(r"^step .*?\| loss ([0-9.]+)", ended.output, re.MULTILINE)]


@pytest.mark.parametrize("shape", [[], ["--group-query-attention", "--num-query-groups", "2"], ["--qk-layernorm"]])
@pytest.mark.slow
def test_the_values_that_run_have_the_losses_of_the_default(shape):
    expected = losses(*shape)
    assert len(expected) == 3
    for name in sorted(RUNS - {"auto"}):
        assert losses(*shape, "--attention-backend", name) == pytest.approx(expected, abs=2e-4), name


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_the_others_are_refused(name):
    ended = run_training_ranks(1, [*SMALL, *STEPS, "--attention-backend", name], timeout=120)[0]
    assert ended.code == 2 and f"--attention-backend {name}" in ended.output
