"""Merged checkpoints are the weighted average of their members, at any layouts, and are loaded and exported."""

import math
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from megatron_cod import merging
from megatron_cod.checkpoint.tensors import WEIGHTS, Checkpoint, kind_of
from megatron_cod.errors import UserError
from megatron_cod.huggingface.export import ExportJob, export_model
from megatron_cod.merging import METHODS, MergeJob, members_of, merge, weights_of
from tests.distributed.launch import run_training_ranks


def trained(flags, save: Path, world: int = 1) -> Path:
    ended = run_training_ranks(world, [*flags, "--save", str(save), "--save-interval", "2"])
    assert [one.code for one in ended] == [0] * world, ended[0].output[-2000:]
    return save


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """A run whose first half was one process, and whose second half a pipeline of two: its members have two layouts."""
    save = tmp_path_factory.mktemp("merging") / "run"
    trained([*tiny, "--exit-interval", "4"], save)
    return trained([*tiny, "--load", str(save), "--pipeline-model-parallel-size", "2"], save, world=2)


def tensors(path: Path) -> dict:
    opened = Checkpoint(path)
    return {
        name: opened.read(part, 0, part.shape[0] if part.shape else 1)
        for name, part in opened.slices.items()
        if kind_of(name[0]) == WEIGHTS
    }


def largest_difference(run: Path, output: Path, weights: list[float]) -> float:
    members, merged = [tensors(path) for path in members_of(run, None, None)], tensors(output / "release")
    assert merged.keys() == members[-1].keys() and len(merged) > 20
    differences = []
    for name, value in merged.items():
        expected = sum(weight * member[name].double() for weight, member in zip(weights, members, strict=True))
        differences.append(float((value.double() - expected).abs().max()))
    return max(differences)


def test_weights_sum_to_one_and_have_their_shapes():
    for method in METHODS:
        for count in (2, 3, 7):
            assert math.isclose(math.fsum(weights_of(method, count)), 1.0, abs_tol=1e-12)
    assert weights_of("equal", 4) == [0.25] * 4
    assert weights_of("linear", 3) == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    assert weights_of("ema", 3, 0.5) == pytest.approx([1 / 7, 2 / 7, 4 / 7])
    # Of a decay by 1 - sqrt(t), the gradients after member j keep the weight of all later members together.
    parts = weights_of("minus-sqrt", 4)
    for later in range(1, 4):
        assert math.fsum(parts[later:]) == pytest.approx(1 - math.sqrt(later / 4))


@pytest.mark.slow_except("ema", "equal", "minus-sqrt")
@pytest.mark.parametrize("method", METHODS)
def test_every_tensor_is_the_average_of_the_members(method, run, tmp_path):
    members = members_of(run, None, None)
    assert [path.name for path in members] == [f"iter_000000{step}" for step in (2, 4, 6, 8)]
    shares = merge(MergeJob(members, tmp_path / "merged", method))
    assert list(shares.values()) == weights_of(method, 4)
    assert largest_difference(run, tmp_path / "merged", weights_of(method, 4)) < 1e-7


@pytest.mark.parametrize("mutant", ["reversed", "newest alone"])
def test_finds_wrong_weights(mutant, run, tmp_path, monkeypatch):
    right = weights_of("linear", 4)
    wrong = right[::-1] if mutant == "reversed" else [0.0, 0.0, 0.0, 1.0]
    monkeypatch.setattr(merging, "weights_of", lambda *_: wrong)
    merge(MergeJob(members_of(run, None, None), tmp_path / "merged", "linear"))
    assert largest_difference(run, tmp_path / "merged", right) > 1e-5


@pytest.mark.slow
def test_pieces_of_a_tensor_are_put_together(run, tmp_path, monkeypatch):
    monkeypatch.setattr("megatron_cod.checkpoint.tensors.CHUNK", 100)
    merge(MergeJob(members_of(run, 2, None), tmp_path / "merged", file_bytes=10_000))
    assert len(list((tmp_path / "merged" / "release").glob("*.distcp"))) > 3
    opened = Checkpoint(tmp_path / "merged" / "release")
    assert all(opened.read(part, 0, part.shape[0]).isfinite().all() for part in opened.slices.values() if part.shape)
    monkeypatch.undo()
    merge(MergeJob(members_of(run, 2, None), tmp_path / "whole"))
    one, other = (tensors(tmp_path / name / "release") for name in ("merged", "whole"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.slow
def test_the_result_is_trained_on_and_exported(run, tiny, tmp_path):
    merge(MergeJob(members_of(run, 3, None), tmp_path / "merged"))
    flags = [*tiny, "--load", str(tmp_path / "merged"), "--pipeline-model-parallel-size", "2", "--train-iters", "2"]
    ended = run_training_ranks(2, [*flags, "--log-interval", "1"])
    assert ended[0].code == 0 and "step 2/2 | loss" in ended[0].output, ended[0].output[-2000:]
    export_model(ExportJob(tmp_path / "merged", tmp_path / "hf"))
    assert (tmp_path / "hf" / "config.json").is_file()
    refused = run_training_ranks(1, [*tiny, "--norm-scheme", "pre_ln", "--load", str(tmp_path / "merged")])
    assert refused[0].code == 2 and "was trained with --norm-scheme lns" in refused[0].output


def test_refuses_what_does_not_belong_together(run, tiny, tmp_path):
    with pytest.raises(UserError, match=r"no finished checkpoint of step 5; there are 2, 4, 6, 8"):
        members_of(run, None, [4, 5])
    with pytest.raises(UserError, match="has 4 finished checkpoints, not 9"):
        members_of(run, 9, None)
    with pytest.raises(UserError, match="at least two"):
        merge(MergeJob(members_of(run, None, [4]), tmp_path / "x"))
    other = trained([*tiny, "--norm-scheme", "pre_ln", "--train-iters", "2"], tmp_path / "other")
    with pytest.raises(UserError, match="compute different functions and are not merged: norm_scheme"):
        merge(MergeJob((*members_of(other, None, None), *members_of(run, None, None)), tmp_path / "x"))
    assert not (tmp_path / "x").exists()


def members_with(monkeypatch, run: Path, change, step: int = 2) -> MergeJob:
    """A merge of two members, of which one has other arguments."""
    read = Checkpoint.common_state

    def common_state(self):
        state = read(self)
        if self.path.name.endswith(str(step)):
            change(state["args"])
        return state

    monkeypatch.setattr(Checkpoint, "common_state", common_state)
    return MergeJob(members_of(run, None, [2, 4]), run.parent / "never")


@pytest.mark.parametrize("step", [2, 4])
@pytest.mark.parametrize(
    ("field", "value", "flag"),
    [
        ("rotary_base", 500000, "--rotary-base"),
        ("layernorm_epsilon", 1e-2, "--norm-epsilon"),
        ("qk_l2_norm", True, "--qk-l2-norm"),
        ("moe_router_score_function", "sigmoid", "--moe-router-score-function"),
        ("quant_recipe", {"type": "RecipeConfig", "configs": {"a": 1}}, "--te-precision-config-file"),
    ],
)
def test_refuses_members_of_another_function(field, value, flag, step, run, monkeypatch):
    job = members_with(monkeypatch, run, lambda args: args.model_function.update({field: value}), step)
    with pytest.raises(UserError, match=f"compute different functions and are not merged: {flag}"):
        merge(job)
    assert not job.output.exists()


@pytest.mark.parametrize("step", [2, 4])
def test_members_without_a_record_are_compared_by_their_arguments(step, run, tmp_path, monkeypatch):
    def without(args):
        del args.model_function

    def other(args):
        del args.model_function
        args.rotary_base = 77

    with pytest.raises(UserError, match=r"not merged: --rotary-base .*77"):
        merge(members_with(monkeypatch, run, other, step))
    monkeypatch.undo()
    job = members_with(monkeypatch, run, without, step)
    merge(MergeJob(job.members, tmp_path / "merged"))


def flip(folder: Path) -> None:
    """Change a byte in the middle of the largest file."""
    file = max(folder.glob("release/*.distcp"), key=lambda path: path.stat().st_size)
    held = bytearray(file.read_bytes())
    held[len(held) // 2] ^= 1
    file.write_bytes(held)


def test_a_byte_that_the_disk_changed_is_found(run, tmp_path, monkeypatch):
    monkeypatch.setattr(merging, "_write_companions", lambda folder, *_: flip(folder))
    with pytest.raises(UserError, match=r"does not read back|corrupt"):
        merge(MergeJob(members_of(run, None, None), tmp_path / "merged"))
    assert list(tmp_path.iterdir()) == []


def test_a_tensor_that_was_not_written_is_found(run, tmp_path, monkeypatch):
    whole = merging._pieces_of
    monkeypatch.setattr(merging, "_pieces_of", lambda *job: whole(*job)[:-1])
    with pytest.raises(UserError, match=r"does not read back|does not hold all"):
        merge(MergeJob(members_of(run, None, None), tmp_path / "merged"))
    assert list(tmp_path.iterdir()) == []


def test_arguments_that_are_not_those_of_the_members_are_found(run, tmp_path, monkeypatch):
    def other(members):
        args = Namespace(**vars(members.args))
        args.model_function = {**args.model_function, "rotary_base": 77}
        return args

    monkeypatch.setattr(merging, "_args_of", other)
    with pytest.raises(UserError, match="does not read back as it was written: --rotary-base"):
        merge(MergeJob(members_of(run, None, None), tmp_path / "merged"))


def test_nothing_is_left_of_a_merge_that_fails(run, tmp_path, monkeypatch):
    monkeypatch.setattr(merging.CheckpointWriter, "finish", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError):
        merge(MergeJob(members_of(run, None, None), tmp_path / "merged"))
    assert list(tmp_path.iterdir()) == []
