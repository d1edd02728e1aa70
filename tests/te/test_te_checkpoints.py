"""A checkpoint moves between backends unconverted: dense, mixture of experts, latent attention, Post-LN."""

import pytest

from tests.distributed.architectures import MLA, MOE
from tests.distributed.runs import at_step_4, losses, succeed
from tests.te.flags import TE

MODELS = {
    "lns": [],
    "pre_ln": ["--norm-scheme", "pre_ln"],
    "lns distributed optimizer": ["--use-distributed-optimizer"],
    "post_ln": ["--norm-scheme", "post_ln"],
    "moe": [*MOE, "--moe-layer-freq", "([0]*1+[1]*3)"],
    "mla": [*MLA],
    "sandwich_ln moe": [*MOE, "--norm-scheme", "sandwich_ln"],
    "qk-norm": ["--qk-layernorm"],
}
SAVE = ["--save-interval", "4"]


# From torch is the way of a user with a cluster; back is slower to prove than to get wrong: three models of every run.
CASES = [pytest.param(name, False, id=f"{name} from torch") for name in MODELS]
CASES += [
    pytest.param(name, True, id=f"{name} to torch", marks=[] if name in ("lns", "moe", "mla") else [pytest.mark.slow])
    for name in MODELS
]


@pytest.mark.parametrize(("name", "back"), CASES)
@pytest.mark.slow_except("moe to torch")
def test_training_resumes_with_another_backend(name, back, tiny, tmp_path):
    """4 steps with one, 4 with the other: the losses of 8 steps with one."""
    whole, other = tmp_path / "whole", tmp_path / "other"
    before, after = (list(TE), []) if back else ([], list(TE))
    succeed(1, [*tiny, *MODELS[name], *before, "--save", str(whole), *SAVE])
    stopped = at_step_4(whole, tmp_path / "stopped")
    succeed(1, [*tiny, *MODELS[name], *after, "--load", str(stopped), "--save", str(other), *SAVE])
    expected, train = losses(whole)[0], losses(other)[0]
    assert set(train) == {5, 6, 7, 8}
    assert max(abs(train[step] - expected[step]) for step in train) <= 2e-5
