"""Checkpoints on Transformer Engine's layers: saved, loaded, and moved from the torch backend and back."""

import os

import pytest

from megatron_cod.training.flags.low_precision import UNPICKLES
from tests.cuda_te.runs import MLA, MOE, train

TORCH = ("--backend", "torch", "--no-rope-fusion")
TE = ("--backend", "transformer_engine")
SAVE = ("--save-interval", "2", "--train-iters", "2")
GOES_ON = ("--train-iters", "4", "--override-opt-param-scheduler")
MODELS = {
    "lns": (),
    "distributed optimizer": ("--use-distributed-optimizer",),
    "fp8 tensorwise": ("--fp8-format", "hybrid", "--fp8-recipe", "tensorwise"),
    "fp8 delayed": ("--fp8-format", "hybrid", "--fp8-recipe", "delayed"),
    "latent attention": (*MLA, "--no-rope-fusion"),  # the fused one has minutes of Triton's autotuning
    "experts": MOE,
}


def unpickles():
    """For delayed scaling, whose state is a pickle."""
    os.environ[UNPICKLES] = "1"


def goes_on(folder, model, first, then):
    saved = folder / "first"
    train(1, folder / "reports", *model, *first, *SAVE, "--save", str(saved), before=unpickles).succeeded()
    more = (*then, *GOES_ON, "--load", str(saved), "--save", str(folder / "then"))
    after = train(1, folder / "more", *model, *more, before=unpickles)
    assert len(after.succeeded().losses) == 2, after.console[-3000:]


@pytest.mark.parametrize("name", MODELS)
def test_resumes_training(name, tmp_path):
    goes_on(tmp_path, MODELS[name], TE, TE)


@pytest.mark.parametrize("name", ["lns", "latent attention", "experts"])
@pytest.mark.parametrize(("first", "then"), [(TORCH, TE), (TE, TORCH)], ids=["from torch", "to torch"])
def test_training_moves_between_backends(name, first, then, tmp_path):
    goes_on(tmp_path, MODELS[name], first, then)
