"""Checkpoints on Transformer Engine's layers: saved, loaded, and moved from the torch backend and back."""

import pytest

from tests.cuda_te.runs import MLA, MOE, train

TORCH = ("--backend", "torch", "--no-rope-fusion")
TE = ("--backend", "transformer_engine")
SAVE = ("--save-interval", "2", "--train-iters", "2")
GOES_ON = ("--train-iters", "4")
MODELS = {
    "lns": (),
    "distributed optimizer": ("--use-distributed-optimizer",),
    "fp8": ("--fp8-format", "hybrid", "--fp8-recipe", "delayed"),
    "latent attention": MLA,
    "experts": MOE,
}


def goes_on(folder, model, first, then):
    saved = folder / "first"
    train(1, folder / "reports", *model, *first, *SAVE, "--save", str(saved)).succeeded()
    after = train(1, folder / "more", *model, *then, *GOES_ON, "--load", str(saved), "--save", str(folder / "then"))
    assert len(after.succeeded().losses) == 2, after.console[-3000:]


@pytest.mark.parametrize("name", MODELS)
def test_training_is_resumed(name, tmp_path):
    goes_on(tmp_path, MODELS[name], TE, TE)


@pytest.mark.parametrize("name", ["lns", "latent attention", "experts"])
@pytest.mark.parametrize(("first", "then"), [(TORCH, TE), (TE, TORCH)], ids=["from torch", "to torch"])
def test_training_moves_between_backends(name, first, then, tmp_path):
    goes_on(tmp_path, MODELS[name], first, then)
