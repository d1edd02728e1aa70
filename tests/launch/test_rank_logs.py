"""Who prints where, and what W&B is given."""

import os
import re
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from torch.distributed import DistNetworkError, HashStore

from megatron_cod.checkpoint.events import read_events
from megatron_cod.launch.console_relay import Lines
from megatron_cod.training.monitoring.reporting import check_wandb
from tests.distributed.launch import run_training_ranks
from tests.distributed.runs import refuse, succeed
from tests.training.faults.mutants import BrokenLayer, FailsAt

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


FAULT = (
    "this is a fault of megatron_cod, or of what it is built on, and not of the command: "
    "please report it, with the traceback (see CONTRIBUTING.md)"
)


@pytest.mark.slow
def test_rank_0_has_the_console_and_each_rank_a_file(tiny, tmp_path):
    """One line a step on it, whichever rank has the losses; in the files is all that Megatron prints."""
    save = tmp_path / "run"
    flags = [*tiny, *SHORT, "--pipeline-model-parallel-size", "2", "--log-interval", "1", "--save", str(save)]
    ended = succeed(4, flags)
    output = ended[0].output
    assert "depth map" in output and len(output.splitlines()) < 40, output
    assert re.findall(r"^step (\d)/4 \|.* loss", output, re.M) == ["1", "2", "3", "4"]
    assert not re.search(r"iteration +\d+/ +4|\.\.\. ", output)
    assert "summary:\n  trained        steps 1 to 4, " in output
    assert re.search(r"checkpoints    2 in \S+/run, the newest iter_0000004", output)
    assert [one.output.strip() for one in ended[1:]] == [""] * 3
    logs = [(save / "logs" / f"rank_{rank:05d}.log").read_text() for rank in range(4)]
    for rank, log in enumerate(logs):
        assert re.match(rf"---- \S+ rank {rank} of 4 on \S+, pid \d+, restart 0\n", log)
    unkept = set(output.splitlines()) - set(logs[0].splitlines())
    assert all(line.startswith("backend: ") for line in unkept), unkept  # before it is known where the files are
    assert re.search(r"attention_dropout \.\.\.", logs[0]) and len(re.findall(r"iteration +\d/ +4 ", logs[3])) == 4
    assert len(re.findall(r"^step ", logs[3], re.M)) == 4


@pytest.mark.slow
def test_prints_all_on_the_console_if_requested(tiny, tmp_path):
    save = tmp_path / "run"
    ended = succeed(4, [*tiny, *SHORT, "--save", str(save), "--rank-log-dir", "none"])
    assert not (save / "logs").exists() and "attention_dropout" in ended[0].output
    assert "step 4/4" in ended[0].output and not re.search("^step ", ended[3].output, re.M)
    succeed(4, [*tiny, *SHORT, "--rank-log-dir", str(tmp_path / "elsewhere")])
    assert len(list((tmp_path / "elsewhere").iterdir())) == 4


def test_lines_go_from_the_last_rank_to_the_first():
    store, shown, status = HashStore(), [], []
    reader, sender = Lines(shown.append, status.append), Lines(pytest.fail, pytest.fail)
    reader.connect(store, reads=True)
    sender.connect(store, reads=False)
    for line in ("step 1", "end", ""):
        sender.send(line)
        sender.send_status(f"{line} of 3")
    sender.end(0)
    reader.end(10)
    assert shown == ["step 1", "end", ""] and status == ["step 1 of 3", "end of 3", " of 3"]


def test_lost_rank_does_not_block_rank_0():
    reader = Lines()
    reader.connect(HashStore(), reads=True)
    begun = time.monotonic()
    reader.end(0.5)
    assert time.monotonic() - begun < 3


def test_last_rank_prints_without_rank_0(capsys):
    class Gone:
        def set(self, *_: object) -> None:
            raise DistNetworkError("gone")

    shown: list[str] = []
    lines = Lines(shown.append)
    lines.connect(Gone(), reads=False)
    lines.send("a")
    lines.send("b")
    lines.end(0)
    assert shown == ["a", "b"] and "rank 0 is not reached: gone" in capsys.readouterr().err


def test_a_log_on_a_full_disk_loses_lines_and_not_the_run(tmp_path):
    """The system's full file stands for the disk."""
    (tmp_path / "rank_00000.log").symlink_to("/dev/full")
    code = (
        "from megatron_cod import console\nfrom megatron_cod.launch import rank_logs\nfrom pathlib import Path\n"
        f"rank_logs.redirect(Path({str(tmp_path)!r}), 0, 1)\nprint('lost')\nconsole.print_line('seen')\nraise KeyError('x')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (1, "seen\n")
    log = tmp_path / "rank_00000.log"
    assert done.stderr.splitlines() == [
        f"WARNING: {log} cannot be written (No space left on device); lines of it are lost",
        f"rank 0 failed: KeyError: 'x'; {FAULT} (its log: {log})",
    ]


@pytest.mark.slow
def test_failure_is_on_the_console_too(tiny, tmp_path):
    ended = run_training_ranks(4, [*tiny, *SHORT, "--save", str(tmp_path)], before=FailsAt(rank=2, step=3))
    said = [line for line in ended[2].output.splitlines() if line.startswith("rank 2 failed: ")]
    log = tmp_path / "logs" / "rank_00002.log"
    assert said == [f"rank 2 failed: ZeroDivisionError: in step 3; {FAULT} (its log: {log})"]
    assert said[0] in log.read_text()
    failed = [one for one in read_events(tmp_path) if one["event"] == "failed"]
    assert [(one["rank"], one["error"]) for one in failed] == [(2, "ZeroDivisionError: in step 3")]


@pytest.mark.slow
def test_the_console_has_the_error_of_a_rank_with_a_file(tiny, tmp_path):
    """Rank 0 speaks for all; were it not there to speak, the others would."""
    broken = BrokenLayer(2, (3,), rank=1)
    ended = run_training_ranks(4, [*tiny, *SHORT, "--save", str(tmp_path)], before=broken)
    assert "error: step 3: the output of layer 2 is not finite (rank 1 on" in ended[0].output


def offline() -> None:
    os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}


@pytest.mark.slow
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
