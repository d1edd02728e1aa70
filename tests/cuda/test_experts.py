"""Experts on another number of ranks: the weights and, where Megatron can bring it there, the optimizer's state."""

import pytest

from tests.cuda.resumes import DISTRIBUTED, DP2, difference, launch, save

MOE = (
    *("--num-experts", "4", "--moe-router-topk", "2", "--moe-ffn-hidden-size", "64"),
    *("--moe-token-dispatcher-type", "alltoall", "--no-load-rng"),
)
BATCH = ("--micro-batch-size", "1")


def ep(size: int) -> list[str]:
    return [*MOE, *BATCH, "--expert-model-parallel-size", str(size)]


@pytest.mark.parametrize(("theirs", "ours"), [(1, 2), (2, 1)], ids=["1 to 2", "2 to 1"])
@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.slow
def test_rejects_one_rank_to_several_and_back(tmp_path, theirs, ours, device):
    """Over several ranks experts have an optimizer of their own; the remedy that is named works."""
    saved = save(tmp_path, theirs, *ep(theirs), device=device)
    flags = [*ep(ours), "--load", str(saved.stopped)]
    run = launch(ours, tmp_path / "refused", *flags, device=device)
    assert run.refused(f"--expert-model-parallel-size {theirs}", "--no-load-optim")
    out = launch(ours, tmp_path / "out", *flags, "--no-load-optim", device=device).succeeded()
    assert len(out.losses) == 2


@pytest.mark.parametrize("optimizer", [[], [DISTRIBUTED]], ids=["plain", "distributed"])
@pytest.mark.slow
def test_resumes_at_the_same_and_at_twice_as_many(tmp_path, optimizer):
    saved = save(tmp_path, 4, *ep(2), *optimizer)
    assert difference(saved, tmp_path / "same", 4, *ep(2), *optimizer) == 0
    assert difference(saved, tmp_path / "more", 4, *ep(4), *optimizer) <= 1e-5


@pytest.mark.slow
def test_experts_on_one_rank_resume_on_other_replicas(tmp_path):
    saved = save(tmp_path, 2, *MOE, *DP2, DISTRIBUTED)
    assert difference(saved, tmp_path / "one", 1, *MOE, *DP2, DISTRIBUTED) <= 1e-5
