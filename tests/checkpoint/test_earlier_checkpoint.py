"""A checkpoint that an earlier commit saved still loads, and resumes with the losses of the run that saved it.

``earlier.tar.xz`` is what the commit ``saved_by`` of its ``losses.json`` left in ``--save`` after step 2 of a run of 4
steps with FLAGS, and the losses of steps 3 and 4 of the unbroken run. Do not make it again: a checkpoint of today proves
nothing.
"""

import json
import tarfile
from pathlib import Path

import pytest

from tests.distributed.launch import run_training_ranks
from tests.distributed.runs import losses

FLAGS = [
    *("--hidden-size", "4", "--num-attention-heads", "2", "--ffn-hidden-size", "8", "--num-layers", "2"),
    *("--train-iters", "4", "--eval-interval", "4", "--eval-iters", "1", "--save-interval", "2"),
    *("--norm-scheme", "mix_ln", "--mix-ln-post-layers", "1", "--gamma-init"),
]


@pytest.fixture
def earlier(tmp_path):
    with tarfile.open(Path(__file__).with_name("earlier.tar.xz")) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def test_resumes_checkpoint_of_earlier_commit(earlier, tiny):
    ended = run_training_ranks(1, [*tiny, *FLAGS, "--load", str(earlier), "--save", str(earlier)])
    assert ended[0].code == 0, ended[0].output[-2000:]
    expected = json.loads((earlier / "losses.json").read_text())["train"]
    resumed, _ = losses(earlier)
    assert {step: resumed[step] for step in (3, 4)} == pytest.approx({int(n): x for n, x in expected.items()}, abs=1e-6)


def test_checks_scheme_of_earlier_checkpoint(earlier, tiny):
    other = ["--mix-ln-post-layers", "2", "--load", str(earlier), "--dry-run"]
    ended = run_training_ranks(1, [*tiny, *FLAGS, *other])
    assert ended[0].code == 2
    assert "mix_ln_post_layers 1 (this run: 2)" in ended[0].output
