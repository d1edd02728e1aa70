"""Save and resume on GPUs without Transformer Engine and Apex: the losses of the unbroken run, to the bit."""

from functools import cache

import pytest

from megatron_cod.checkpoint.selection import saved_state
from tests.cuda.resumes import DISTRIBUTED, DP2, Saved, difference, launch, save

OFFLOAD = (DISTRIBUTED, "--use-precision-aware-optimizer", "--optimizer-cpu-offload")
EXACT = {
    "distributed fp32": (1, [DISTRIBUTED]),
    "distributed bf16": (1, [DISTRIBUTED, "--bf16"]),
    "distributed bf16 dp2": (2, [DISTRIBUTED, "--bf16", *DP2, "--overlap-grad-reduce", "--overlap-param-gather"]),
    "distributed fp32 dp2": (2, [DISTRIBUTED, *DP2]),
    "distributed fp16": (1, [DISTRIBUTED, "--fp16", "--initial-loss-scale", "65536"]),
    "distributed tp2 dropout": (2, [DISTRIBUTED, "--tensor-model-parallel-size", "2", "--hidden-dropout", "0.1"]),
    "plain dropout": (1, ["--hidden-dropout", "0.1", "--attention-dropout", "0.1"]),
    "plain fp16": (1, ["--fp16", "--initial-loss-scale", "65536"]),
    "offload bf16": (1, ["--bf16", *OFFLOAD]),
    "offload bf16 half": (1, ["--bf16", *OFFLOAD, "--optimizer-offload-fraction", "0.5"]),
    "offload bf16 dp2 overlap": (2, ["--bf16", *OFFLOAD, *DP2, "--overlap-cpu-optimizer-d2h-h2d"]),
}


@pytest.mark.parametrize(("world", "flags"), EXACT.values(), ids=EXACT)
@pytest.mark.slow_except("distributed bf16")
def test_resumes_to_the_bit(tmp_path, world, flags):
    saved = save(tmp_path, world, *flags)
    assert difference(saved, tmp_path / "resumed", world, *flags) == 0


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(ranks, flags) -> a run that was stopped."""

    @cache
    def run(world: int, *flags: str) -> Saved:
        return save(tmp_path_factory.mktemp("run"), world, *flags)

    return run


LAYOUTS = {
    "dp2 -> dp1": (2, DP2, 1, ()),
    "dp1 -> tp2": (1, (), 2, ("--tensor-model-parallel-size", "2")),
    "tp2 -> pp2": (2, ("--tensor-model-parallel-size", "2"), 2, ("--pipeline-model-parallel-size", "2")),
}


@pytest.mark.slow
@pytest.mark.parametrize(("world", "flags", "other", "now"), LAYOUTS.values(), ids=LAYOUTS)
def test_resumes_at_another_layout(saved, tmp_path, world, flags, other, now):
    run = saved(world, DISTRIBUTED, "--bf16", *flags)
    assert difference(run, tmp_path / "resumed", other, DISTRIBUTED, "--bf16", *now) <= 1e-3


def without_adaptations() -> None:
    """A mutant: the optimizer's wraps are omitted."""
    from megatron_cod.adaptations import torch_only

    torch_only.TORCH_ADAPTED = ()


@pytest.mark.slow
def test_without_the_adaptations_it_does_not_resume(saved, tmp_path):
    run = saved(1, DISTRIBUTED, "--bf16")
    flags = [DISTRIBUTED, "--bf16", "--load", str(run.stopped)]
    assert launch(1, tmp_path / "resumed", *flags, before=without_adaptations).code != 0


def with_one_step_for_all() -> None:
    """A mutant: parameters share one step tensor, which AdamW counts up once a parameter."""
    from megatron_cod.adaptations import torch_only

    rows = torch_only.TORCH_ADAPTED
    torch_only.TORCH_ADAPTED = tuple(row for row in rows if row.name != "load_state_dict")


@pytest.mark.slow
def test_detects_step_counted_once_a_parameter(saved, tmp_path):
    run = saved(1, DISTRIBUTED, "--bf16")
    assert difference(run, tmp_path / "resumed", 1, DISTRIBUTED, "--bf16", before=with_one_step_for_all) > 1e-4


@pytest.mark.parametrize("wanted", ["--finetune", "--no-load-optim"])
@pytest.mark.slow
def test_weights_alone_load_into_either_optimizer(saved, tmp_path, wanted):
    """No optimizer state is read, so that none can stand in the way: the losses are those of the other optimizer."""
    stopped = saved(1, "--bf16").stopped
    flags = ["--bf16", "--load", str(stopped), wanted]
    plain, distributed = (launch(1, tmp_path / n, *flags, *o).succeeded() for n, o in (("p", []), ("d", [DISTRIBUTED])))
    assert len(plain.losses) == (4 if wanted == "--finetune" else 2)
    assert max(abs(a - b) for a, b in zip(plain.losses, distributed.losses, strict=True)) <= 2e-3


@pytest.mark.parametrize("precision", [["--fp16"], []], ids=["fp16", "fp32"])
@pytest.mark.slow
def test_rejects_offload_in_another_precision(tmp_path, precision):
    assert launch(1, tmp_path, *precision, *OFFLOAD).refused("--optimizer-cpu-offload", "--bf16")


@pytest.mark.slow
def test_rejects_a_checkpoint_without_optimizer_state(saved, tmp_path):
    run = saved(1, "--no-save-optim")
    flags = ["--load", str(run.stopped)]
    assert launch(1, tmp_path / "a", *flags).refused("--no-save-optim", "--no-load-optim", "--finetune")
    assert len(launch(1, tmp_path / "b", *flags, "--no-load-optim").succeeded().losses) == 2


@pytest.mark.slow
def test_a_checkpoint_without_random_states_resumes(saved, tmp_path):
    assert difference(saved(1, "--no-save-rng"), tmp_path / "resumed", 1) == 0
    assert saved_state(saved(1, "--no-save-rng").stopped / "iter_0000002")["args"].device_kind == "cuda"
