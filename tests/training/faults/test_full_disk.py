"""A disk that is full in mid-save: one line, exit code not 0, and what was saved before is whole and goes on."""

import os
import shutil
import subprocess

import pytest

from megatron_cod.checkpoint.directory import damage, newest_whole, read_tracker
from megatron_cod.checkpoint.events import Events, read_events
from megatron_cod.errors import USER_ERROR
from tests.distributed.launch import run_training_ranks
from tests.distributed.runs import losses_of

PP2 = ["--pipeline-model-parallel-size", "2"]
LONG = ["--train-iters", "16", "--lr-decay-iters", "16", "--eval-iters", "0", "--save-interval", "4"]


@pytest.fixture()
def disk(tmp_path):
    """Mounts a file system of so many KiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system of its own needs root")
    mounted = []

    def mount(size: int):
        folder = tmp_path / f"disk{size}"
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(folder)], capture_output=True
        )
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.decode().strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


# A checkpoint of this run is about 990 KiB, 37 of them the index, written last.
@pytest.mark.parametrize("size", [2500, 2990], ids=["in the data", "in the index"])
@pytest.mark.slow
def test_full_disk_in_a_save_ends_in_one_line(tiny, tmp_path, disk, size):
    small = disk(size)
    save = small / "run"
    metrics = tmp_path / "metrics.jsonl"
    flags = [*tiny, *LONG, *PP2, "--load", str(save), "--metrics-file", str(metrics)]
    flags += ["--tensorboard-dir", str(tmp_path / "tensorboard")]
    ended = run_training_ranks(2, [*flags, "--save", str(save)])
    assert all(rank.code for rank in ended)
    errors = [line for rank in ended for line in rank.output.splitlines() if line.startswith("error: ")]
    assert errors and any(rank.code == USER_ERROR for rank in ended), ended  # which starting again would not help
    for line in errors:  # rank 1's too, where rank 0 is slow to speak
        assert f"the save of step 12 in {save} failed: " in line
        assert "; its disk is full; the newest" in line
        assert line.endswith("the newest whole checkpoint is iter_0000008")
    assert not any("Traceback" in rank.output for rank in ended)
    assert read_tracker(save) == "8" and damage(save / "iter_0000008") is None

    roomy = tmp_path / "roomy"  # the same directory on a larger disk
    shutil.copytree(save, roomy)
    again = [str(roomy) if flag == str(save) else flag for flag in flags]
    ended = run_training_ranks(2, [*again, "--save", str(roomy)])
    assert [rank.code for rank in ended] == [0, 0], ended[0].output[-2000:]
    assert newest_whole(roomy)[0].name == "iter_0000016"
    whole = tmp_path / "whole"
    run_training_ranks(2, [*tiny, *LONG, *PP2, "--save", str(whole)])
    metrics.rename(roomy / "metrics.jsonl")
    assert losses_of(roomy) == losses_of(whole)


def test_an_event_that_cannot_be_written_is_reported(disk, capsys):
    small = disk(64)
    (small / "filler").write_bytes(b"x" * 64 * 1024)
    Events(str(small), 0).add("start", restarts=0)
    said = capsys.readouterr().err
    assert "events.jsonl cannot be written" in said and '"event": "start"' in said


def test_line_after_a_torn_line_is_kept(tmp_path):
    (tmp_path / "events.jsonl").write_text('{"event": "start"}\n{"eve')
    Events(str(tmp_path), 0).add("finished")
    assert [one["event"] for one in read_events(tmp_path)] == ["start", "finished"]
