"""Who prints where, and what W&B is given."""

import os
import re
import sys
from types import SimpleNamespace

import pytest

from megatron_cod.training.faults.events import read_events
from megatron_cod.training.reporting import check_wandb
from tests.distributed.launch import run_training_ranks
from tests.distributed.test_bad_input import refuse
from tests.distributed.test_resume import succeed
from tests.faults.mutants import BrokenLayer, FailsAt

SHORT = [
    "--micro-batch-size",
    "1",
    "--train-iters",
    "4",
    "--lr-decay-iters",
    "4",
    "--eval-iters",
    "0",
    "--save-interval",
    "2",
]


def test_the_first_and_the_last_rank_have_the_console(tiny, tmp_path):
    save = tmp_path / "run"
    ended = succeed(4, [*tiny, *SHORT, "--pipeline-model-parallel-size", "2", "--save", str(save)])
    assert "depth map" in ended[0].output and "step 4/4" in ended[3].output
    assert "summary:\n  trained        steps 1 to 4, " in ended[3].output
    assert re.search(r"checkpoints    2 in \S+/run, the newest iter_0000004", ended[3].output)
    assert {path.name for path in (save / "logs").iterdir()} == {"rank_00001.log", "rank_00002.log"}
    for rank in (1, 2):
        head = (save / "logs" / f"rank_{rank:05d}.log").read_text().splitlines()[0]
        assert re.fullmatch(rf"---- \S+ rank {rank} of 4 on \S+, pid \d+, restart 0", head)
        assert not ended[rank].output.strip()


@pytest.mark.slow
def test_all_on_the_console_where_asked(tiny, tmp_path):
    save = tmp_path / "run"
    ended = succeed(4, [*tiny, *SHORT, "--save", str(save), "--rank-log-dir", "none"])
    assert not (save / "logs").exists() and "attention_dropout" not in ended[1].output
    succeed(4, [*tiny, *SHORT, "--rank-log-dir", str(tmp_path / "elsewhere")])
    assert len(list((tmp_path / "elsewhere").iterdir())) == 2


@pytest.mark.slow
def test_a_rank_with_a_file_still_says_on_the_console_that_it_fails(tiny, tmp_path):
    ended = run_training_ranks(4, [*tiny, *SHORT, "--save", str(tmp_path)], before=FailsAt(rank=2, step=3))
    said = [line for line in ended[2].output.splitlines() if line.startswith("rank 2 failed: ")]
    log = tmp_path / "logs" / "rank_00002.log"
    assert said == [f"rank 2 failed: ZeroDivisionError: in step 3 (its log: {log})"]
    assert said[0] in log.read_text()
    failed = [one for one in read_events(tmp_path) if one["event"] == "failed"]
    assert [(one["rank"], one["error"]) for one in failed] == [(2, "ZeroDivisionError: in step 3")]


def test_the_console_has_the_error_of_a_rank_with_a_file(tiny, tmp_path):
    """Rank 0 speaks for all; were it not there to speak, the others would."""
    broken = BrokenLayer(2, (3,), rank=1)
    ended = run_training_ranks(4, [*tiny, *SHORT, "--save", str(tmp_path)], before=broken)
    assert "error: step 3: the output of layer 2 is not finite (rank 1 on" in ended[0].output


def offline() -> None:
    os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}


def test_wandb_gets_the_metrics(tiny, tmp_path):
    """Offline: what a run would send lies in a file, names in it as they are."""
    flags = [*tiny, *SHORT, "--wandb-project", "depth", "--wandb-exp-name", "lns", "--save", str(tmp_path)]
    ended = run_training_ranks(1, [*flags, "--depth-monitor-interval", "2"], before=offline)
    assert ended[0].code == 0, ended[0].output[-2000:]
    (file,) = tmp_path.glob("wandb/wandb/offline-run-*/run-*.wandb")
    content = file.read_bytes()
    for name in ("lm loss", "learning-rate", "grad-norm", "tokens per second and GPU", "tokens seen"):
        assert name.encode() in content, name
    assert b"depth/variance after/layer 004" in content


def without_wandb() -> None:
    sys.modules["wandb"] = None  # an import of it fails


def test_wandb_that_is_not_installed_is_one_line(tiny):
    """On the last rank, which is the one to talk to it."""
    flags = [*tiny, *SHORT, "--wandb-project", "depth", "--wandb-exp-name", "lns"]
    refuse(2, flags, r"rank 1 on \S+: --wandb-project needs .*: pip install wandb$", before=without_wandb)


def test_a_folder_of_w_and_bs_name_is_not_the_package(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    args = SimpleNamespace(wandb_project="depth")
    with pytest.raises(ValueError, match=r"--wandb-project needs the package wandb \(cannot import name 'init'"):
        check_wandb(args, 1, 2)
    check_wandb(args, 0, 2)
