"""Another learning rate or length on resume: the asked schedule under a flag, one line that names the flags without."""

import argparse
import re
from pathlib import Path

import pytest

from megatron_cod.checkpoint import resumed_schedule
from megatron_cod.checkpoint.resumed_schedule import check_resumed_schedule
from megatron_cod.comparison.runs import read_metrics
from megatron_cod.errors import UserError
from megatron_cod.training.loop.resumed_rates import match_rates
from tests.distributed.launch import run_training_ranks

KINDS = {
    "fp32": (1, []),
    "bf16": (1, ["--bf16"]),
    "distributed optimizer": (2, ["--use-distributed-optimizer"]),
    "muP": (1, ["--use-mup", "--mup-base-hidden-size", "16"]),
    "decoupled": (1, ["--decoupled-lr", "2e-3", "--decoupled-min-lr", "2e-4"]),
}


def _run(world, flags):
    ended = run_training_ranks(world, flags)[0]
    assert ended.code == 0, ended.output[-1500:]


def _rates(folder):
    return read_metrics(Path(folder) / "metrics.jsonl").scalars["learning-rate"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_requested_rate_equals_that_of_a_run_from_the_start(kind, tiny, tmp_path):
    world, more = KINDS[kind]
    flags = [*tiny, *more, "--eval-iters", "0", "--train-iters", "6", "--save-interval", "3"]
    other = ["--lr", "5e-4", "--min-lr", "5e-5"]
    _run(world, [*flags, "--save", str(tmp_path / "a"), "--exit-interval", "3"])
    _run(world, [*flags, *other, "--save", str(tmp_path / "whole")])
    again = [*flags, *other, "--load", str(tmp_path / "a"), "--save", str(tmp_path / "b")]
    _run(world, [*again, "--override-opt_param-scheduler"])
    whole, resumed = _rates(tmp_path / "whole"), _rates(tmp_path / "b")
    assert resumed == {step: whole[step] for step in (4, 5, 6)}
    # The checkpoint is one of the new rates: it goes on without the flag.
    _run(world, [*flags, *other, "--load", str(tmp_path / "b"), "--save", str(tmp_path / "b")])


@pytest.mark.slow
def test_saved_rate_is_kept_if_requested(tiny, tmp_path):
    flags = [*tiny, "--eval-iters", "0", "--train-iters", "6", "--save-interval", "3"]
    _run(1, [*flags, "--save", str(tmp_path / "a"), "--exit-interval", "3"])
    _run(1, [*flags, "--save", str(tmp_path / "whole")])
    again = [*flags, "--lr", "5e-4", "--load", str(tmp_path / "a"), "--save", str(tmp_path / "b")]
    _run(1, [*again, "--use-checkpoint-opt_param-scheduler"])
    whole, resumed = _rates(tmp_path / "whole"), _rates(tmp_path / "b")
    assert resumed == {step: whole[step] for step in (4, 5, 6)}


def _arguments(**changed):
    asked = {
        "train_iters": 8,
        "train_samples": None,
        "global_batch_size": 4,
        "lr": 1e-3,
        "min_lr": 1e-4,
        "lr_decay_style": "cosine",
        "lr_decay_iters": None,
        "lr_decay_samples": None,
        "lr_warmup_fraction": None,
        "lr_warmup_iters": 2,
        "lr_warmup_samples": 0,
        "start_weight_decay": 0.1,
        "end_weight_decay": 0.1,
        "weight_decay": 0.1,
        "weight_decay_incr_style": "constant",
        "no_load_optim": False,
        "finetune": False,
        "override_opt_param_scheduler": False,
        "use_checkpoint_opt_param_scheduler": False,
    }
    return argparse.Namespace(**asked | changed)


@pytest.mark.parametrize(
    ("changed", "flag"),
    [
        ({"lr": 5e-4}, "--lr 0.001, and this run with 0.0005"),
        ({"min_lr": 0.0}, "--min-lr 0.0001, and this run with 0.0"),
        ({"train_iters": 16}, "--train-iters 8, and this run with 16"),
        ({"global_batch_size": 8}, "--global-batch-size 4, and this run with 8"),
        ({"lr_warmup_iters": 3}, "--lr-warmup-iters 2, and this run with 3"),
        ({"lr_warmup_fraction": 0.5, "lr_warmup_iters": 0}, "--lr-warmup-fraction None, and this run with 0.5"),
        ({"lr_decay_style": "linear"}, "--lr-decay-style cosine, and this run with linear"),
        ({"lr_decay_iters": 6}, "--lr-decay-iters None, and this run with 6"),
        ({"start_weight_decay": 0.0, "weight_decay": 0.0, "end_weight_decay": 0.0}, "--weight-decay 0.1"),
    ],
)
def test_warns_of_another_schedule_by_flag(changed, flag):
    saved, now = _arguments(), _arguments(**changed)
    state = {"opt_param_scheduler": resumed_schedule._scheduler_of(saved)}
    with pytest.raises(UserError, match=re.escape(flag)) as error:
        check_resumed_schedule(Path("iter_0000004"), saved, state, now)
    assert "--override-opt_param-scheduler" in str(error.value)
    for remedy in ("override_opt_param_scheduler", "use_checkpoint_opt_param_scheduler", "no_load_optim", "finetune"):
        check_resumed_schedule(Path("x"), saved, state, _arguments(**changed, **{remedy: True}))
    check_resumed_schedule(Path("x"), saved, state, saved)


class _Optimizer:
    """As much of Megatron's as the rates need: groups, and a load that insists on them."""

    def __init__(self, rates):
        self.param_groups = [{"wd_mult": 1.0, "max_lr": high, "min_lr": low} for high, low in rates]

    def load_state_dict(self, state):
        assert [one["max_lr"] for one in self.param_groups] == [one["max_lr"] for one in state["param_groups"]]
        self.param_groups = state["param_groups"]


@pytest.mark.parametrize(("keeps_saved", "rates"), [(False, [5e-4, 1e-4]), (True, [1e-3, 2e-4])])
def test_groups_that_differ_in_rates_alone_are_paired(keeps_saved, rates):
    optimizer, saved = _Optimizer([(5e-4, 5e-5), (1e-4, 1e-5)]), _Optimizer([(1e-3, 1e-4), (2e-4, 2e-5)])
    match_rates(optimizer, keeps_saved)
    optimizer.load_state_dict({"param_groups": saved.param_groups})
    assert [one["max_lr"] for one in optimizer.param_groups] == rates
    assert "load_state_dict" not in vars(optimizer)
