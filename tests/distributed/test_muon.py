"""Megatron's Muon under the norm schemes: what it does to the matrices, over stages and tensor ranks, and on resuming."""

import shutil

import pytest
import torch

from megatron_cod.analysis.metrics import TRAIN_LOSS, read_metrics
from megatron_cod.checkpoint.tensors import Checkpoint
from megatron_cod.schemes.table import SCHEMES
from tests.distributed.launch import run_training_ranks
from tests.distributed.runs import PP2, refuse, succeed

pytest.importorskip("emerging_optimizers", reason="emerging-optimizers is not installed")

LR = 1e-3
CONSTANT = ["--unset", "lr-warmup-fraction", "--lr-decay-style", "constant", "--weight-decay", "0"]
MUON = [*CONSTANT, "--train-iters", "4", "--eval-iters", "0", "--optimizer", "muon"]
TP2 = ["--tensor-model-parallel-size", "2"]


def losses(folder) -> dict[int, float]:
    return dict(read_metrics(folder / "metrics.jsonl").scalars[TRAIN_LOSS])


def goes_on(whole, folder, flags: list[str], world: int = 2) -> dict[int, float]:
    """The losses of a run that resumes from step 2 of another."""
    shutil.copytree(whole / "iter_0000002", folder / "iter_0000002")
    (folder / "latest_checkpointed_iteration.txt").write_text("2")
    save = ["--load", str(folder), "--save", str(folder), "--save-interval", "9"]
    succeed(world, [*flags, *save])
    return losses(folder)


def whole_run(folder, flags: list[str]):
    succeed(2, [*flags, *PP2, "--save", str(folder), "--save-interval", "1"])
    assert list(losses(folder)) == [1, 2, 3, 4]
    return folder


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """4 steps under lns in two stages, each saved."""
    return whole_run(tmp_path_factory.mktemp("muon"), [*tiny, *MUON])


def step_sizes(folder) -> dict[tuple[str, int], torch.Tensor]:
    """Singular values of the second update of each block's projections, over the rate."""
    before, after = (Checkpoint(folder / f"iter_000000{step}") for step in (1, 2))
    sizes = {}
    for (name, layer), place in after.slices.items():
        if name.startswith("decoder.layers.") and name.endswith(("linear_proj.weight", "linear_fc2.weight")):
            new, old = (
                checkpoint.read(checkpoint.slices[name, layer], 0, place.shape[0]) for checkpoint in (after, before)
            )
            sizes[name, layer] = torch.linalg.svdvals(new.double() - old.double()) / LR
    assert len(sizes) == 2 * 4
    return sizes


def nearly_orthogonal(folder) -> bool:
    """Whether Newton-Schulz in five steps made the updates; it leaves singular values near 1, here times sqrt(width)."""
    return all(
        values.max() < 1.3 * width and values.median() > 0.6 * width
        for (name, _), values in step_sizes(folder).items()
        for width in [(64 if "fc2" in name else 32) ** 0.5]
    )


@pytest.mark.slow
def test_updates_are_orthogonal_at_every_depth(whole, tiny, tmp_path):
    """And Adam's are not: the control."""
    assert nearly_orthogonal(whole)
    assert not nearly_orthogonal(whole_run(tmp_path, [*tiny, *MUON, "--optimizer", "adam"]))


@pytest.mark.slow
def test_stopping_changes_nothing_to_the_bit(whole, tiny, tmp_path):
    assert goes_on(whole, tmp_path, [*tiny, *MUON, *PP2]) == {
        step: loss for step, loss in losses(whole).items() if step > 2
    }


OTHER = {
    "one process": (1, []),
    "tp 2, duplicated": (2, [*TP2, "--muon-tp-mode", "duplicated"]),
    "tp 2 sp, distributed": (2, [*TP2, "--sequence-parallel", "--muon-tp-mode", "distributed"]),
}


@pytest.mark.parametrize(("world", "flags"), OTHER.values(), ids=OTHER)
@pytest.mark.slow
def test_resuming_at_another_layout(whole, tiny, tmp_path, world, flags):
    found, expected = goes_on(whole, tmp_path, [*tiny, *MUON, *flags], world), losses(whole)
    assert list(found) == [3, 4]
    assert max(abs(loss - expected[step]) for step, loss in found.items()) <= 1e-5


@pytest.mark.slow
def test_blockwise_is_another_optimizer_at_another_tp(whole, tiny, tmp_path):
    """Megatron's default; also the mutant of the test above."""
    found, expected = goes_on(whole, tmp_path, [*tiny, *MUON, *TP2]), losses(whole)
    assert found[3] == pytest.approx(expected[3], abs=1e-5) and abs(found[4] - expected[4]) > 1e-3


@pytest.mark.parametrize("scheme", [name for name, row in SCHEMES.items() if row.groups is None])
@pytest.mark.slow
def test_every_scheme_trains_and_resumes(tiny, tmp_path, scheme):
    flags = [*tiny, *MUON, "--norm-scheme", scheme]
    made = whole_run(tmp_path / "whole", flags)
    (tmp_path / "on").mkdir()
    assert goes_on(made, tmp_path / "on", [*flags, *PP2]) == {s: loss for s, loss in losses(made).items() if s > 2}
    assert losses(made)[4] < losses(made)[1]


def test_rejects_unsupported_flags(tiny, tmp_path):
    refuse(
        2, [*tiny, *MUON, *PP2, "--use-distributed-optimizer"], r"--optimizer muon does not support --use-distributed"
    )
    refuse(1, [*tiny, *MUON, "--norm-scheme", "complete_p"], r"complete_p .* --optimizer muon \(its rates are Adam's\)")
    refuse(1, [*tiny, *MUON, "--optimizer", "soap"], r"--optimizer soap is not supported: its state")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bf16", "experts", "latent attention"])
def test_refuses_other_models(tiny, tmp_path, name):
    more = {
        "bf16": ["--bf16"],
        "experts": [
            *("--num-experts", "4", "--expert-model-parallel-size", "2"),
            *("--moe-token-dispatcher-type", "allgather"),
        ],
        "latent attention": ["--multi-latent-attention"],
    }
    flags = [*tiny, *MUON, *more[name], "--save-interval", "2"]
    (tmp_path / "whole").mkdir()
    succeed(2, [*flags, "--save", str(tmp_path / "whole")])
    (tmp_path / "stopped").mkdir()
    found = goes_on(tmp_path / "whole", tmp_path / "stopped", flags)
    assert found == {step: loss for step, loss in losses(tmp_path / "whole").items() if step > 2}


@pytest.mark.slow
def test_lion_equals_its_definition(tiny, tmp_path):
    """What ``optimizer_checks`` lets through beside it."""
    flags = [*tiny, *MUON, "--optimizer", "lion"]
    run = whole_run(tmp_path / "whole", flags)
    (tmp_path / "stopped").mkdir()
    found = goes_on(run, tmp_path / "stopped", [*flags, *PP2])
    assert found == {step: loss for step, loss in losses(run).items() if step > 2}


@pytest.mark.slow
def test_adam_does_not_resume_with_its_state(whole, tiny, tmp_path):
    adam = [*tiny, *MUON, "--optimizer", "adam", "--load", str(whole), "--save", str(tmp_path), "--save-interval", "9"]
    refuse(
        1,
        adam,
        r"was saved with --optimizer muon, whose state --optimizer adam cannot resume from: give that, or --no-",
    )
    assert run_training_ranks(1, [*adam, "--no-load-optim", "--train-iters", "5"])[0].code == 0
