"""When a job script queues a job again, and when it stops doing so."""

import os
import subprocess
import sys

import pytest

from megatron_cod.checkpoint.events import Events, read_events
from megatron_cod.launch.scheduler import restarts
from megatron_cod.training.requeue import AGAIN, DONE, GIVE_UP, decide

JOB = "4711"


def test_a_run_that_never_saved_is_tried_a_few_times(tmp_path):
    assert [decide(tmp_path, 2, JOB)[0] for _ in range(4)] == [AGAIN, AGAIN, GIVE_UP, GIVE_UP]
    assert decide(tmp_path, 2, JOB)[1] == "no step of progress since step 0 in 2 tries: not queued again"


def test_progress_starts_the_count_anew(tmp_path, monkeypatch):
    from megatron_cod.training import requeue

    steps = iter([10, 10, 20, 20, 20, 20])
    monkeypatch.setattr(requeue, "newest_step", lambda _: next(steps))
    assert [decide(tmp_path, 2, JOB)[0] for _ in range(6)] == [AGAIN, AGAIN, AGAIN, AGAIN, GIVE_UP, GIVE_UP]


def test_tries_of_an_earlier_job_do_not_count(tmp_path):
    """The user has repaired what made it fail, and submits it again."""
    assert [decide(tmp_path, 2, JOB)[0] for _ in range(3)] == [AGAIN, AGAIN, GIVE_UP]
    Events(str(tmp_path), 0).add("start")
    assert [decide(tmp_path, 2, "4712")[0] for _ in range(3)] == [AGAIN, AGAIN, GIVE_UP]
    assert [one["job"] for one in read_events(tmp_path) if one["event"] == "queued again"] == [JOB] * 2 + ["4712"] * 2


def test_a_directory_that_was_never_made_is_made_for_the_count(tmp_path):
    """A wrong flag ends the run before it makes its own."""
    save = tmp_path / "runs" / "new"
    assert [decide(save, 2, JOB)[0] for _ in range(3)] == [AGAIN, AGAIN, GIVE_UP]


@pytest.mark.parametrize("why", ["Not a directory", "Is a directory", "No space left on device"])
def test_gives_up_if_retries_cannot_be_counted(tmp_path, why):
    save = tmp_path / "run"
    if why == "Not a directory":
        save.touch()
        save /= "deeper"
    else:
        save.mkdir()
        if why == "Is a directory":
            (save / "events.jsonl").mkdir()
        else:
            (save / "events.jsonl").symlink_to("/dev/full")
    code, line = decide(save, 2, JOB)
    assert code == GIVE_UP and line.endswith(f": {why}; tries cannot be counted there: not queued again")
    assert line.startswith(str(save))


def test_a_finished_run_is_not_queued(tmp_path):
    events = Events(str(tmp_path), 0)
    events.add("start")
    events.add("finished", step=40)
    assert decide(tmp_path, 3, JOB) == (DONE, "finished at step 40")
    events.add("start")  # queued again by mistake and killed: it was not finished then
    assert decide(tmp_path, 3, JOB)[0] == AGAIN


def test_a_torn_line_is_skipped(tmp_path):
    Events(str(tmp_path), 0).add("start")
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"time": "20')
    assert [one["event"] for one in read_events(tmp_path)] == ["start"]


def test_only_one_rank_writes(tmp_path):
    Events(str(tmp_path), 1).add("start")
    Events(None, 0).add("start")
    assert not (tmp_path / "events.jsonl").exists()


def test_restarts_are_those_of_the_scheduler(monkeypatch):
    assert restarts() == 0
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert restarts() == 2


@pytest.mark.parametrize(
    ("told", "count"),
    [
        ({"SLURM_RESTART_COUNT": "3"}, 3),
        ({}, 0),
        ({"SLURM_RESTART_COUNT": ""}, 0),
        ({"SLURM_RESTART_COUNT": "1", "TORCHELASTIC_RESTART_COUNT": "4"}, 4),
    ],
)
def test_restarts_of_an_array_are_those_of_the_task(told, count, monkeypatch):
    """Slurm counts for each task, and its number is no count."""
    task = {"SLURM_JOB_ID": "37", "SLURM_ARRAY_JOB_ID": "36", "SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "9"}
    for name, value in {**task, **told}.items():
        monkeypatch.setenv(name, value)
    assert restarts() == count


@pytest.mark.slow_except("0")
@pytest.mark.parametrize("code", [AGAIN, GIVE_UP])
def test_as_a_job_script_calls_it(tmp_path, code):
    command = [
        sys.executable,
        "-m",
        "megatron_cod.training.requeue",
        str(tmp_path),
        "--retries",
        str(int(code == AGAIN)),
    ]
    environment = {**os.environ, "SLURM_JOB_ID": JOB}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == code
    events = [(one["event"], one["job"]) for one in read_events(tmp_path)]
    assert events == ([("queued again", JOB)] if code == AGAIN else [])
