"""Training without a launcher is one process; under a launcher nothing changes."""

import os

import pytest

from megatron_cod.errors import UserError
from megatron_cod.launch import single_process
from tests.cli.command import megatron_cod as command
from tests.cli.forked import run_command
from tests.commands import TOY

RUN = ["--recipe", "debug", "--mock-data", "--train-iters", "2", "--log-interval", "1", "--rank-log-dir", "logs", *TOY]


@pytest.fixture
def environment(monkeypatch):
    for name in (*single_process.ENVIRONMENT, *single_process._TASKS, "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.setenv(name, "")  # or monkeypatch would not take back what is set later
        monkeypatch.delenv(name)
    return monkeypatch


def test_sets_what_a_launcher_would(environment):
    environment.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    single_process.launch_unless_launched()
    assert {name: os.environ[name] for name in single_process.ENVIRONMENT} == single_process.ENVIRONMENT
    assert "TORCHELASTIC_USE_AGENT_STORE" not in os.environ


@pytest.mark.parametrize("name", single_process.ENVIRONMENT)
def test_leaves_a_launch_alone(name, environment):
    environment.setenv(name, "3")
    single_process.launch_unless_launched()
    assert {one for one in single_process.ENVIRONMENT if one in os.environ} == {name}


@pytest.mark.parametrize("name", single_process._TASKS)
def test_refuses_several_tasks_without_ranks(name, environment):
    environment.setenv(name, "4")
    with pytest.raises(UserError, match="started 4 processes without RANK"):
        single_process.launch_unless_launched()
    environment.setenv(name, "1")
    single_process.launch_unless_launched()
    assert os.environ["WORLD_SIZE"] == "1"


@pytest.mark.slow
def test_trains_in_one_process(tmp_path):
    done = run_command("train", *RUN, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "step 2/2 | loss" in done.stdout
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["rank_00000.log"]


@pytest.mark.slow
def test_trains_in_two_processes_and_ends_in_one_line(tmp_path):
    done = command("train", "--nproc", 2, *RUN, "--pipeline-model-parallel-size", 2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "step 2/2 | loss" in done.stdout and "pipeline stage 1" in done.stdout
    wrong = command("train", "--nproc", 2, *RUN, "--pipeline-model-parallel-size", 3, cwd=tmp_path)
    assert wrong.returncode == 2
    assert [line for line in wrong.stderr.splitlines() if "error" in line.lower()][-1].startswith("error: ")
    assert "Traceback" not in wrong.stderr and "ChildFailedError" not in wrong.stderr
