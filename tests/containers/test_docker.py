"""A real Docker daemon runs the image of Dockerfile.cpu: the quick start, the template; and it builds both files."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import TINY
from tests.containers.conftest import CPU, log
from tests.containers.docker import CLIENT

pytestmark = [pytest.mark.containers, pytest.mark.timeout(3600)]
STEPS = 200


def foreign_files(folder: Path, user: int) -> list[Path]:
    return [path for path in folder.rglob("*") if path.stat().st_uid != user or path.stat().st_gid != user]


def test_the_whole_quick_start_runs_inside(daemon, outside):
    folder, user = outside
    (folder / "runs").mkdir()
    os.chown(folder / "runs", user, user)
    begun = time.monotonic()
    said = daemon.run("run", "--rm", "-v", f"{folder}/runs:/workspace/runs", "--user", f"{user}:{user}", CPU)
    log(f"quick start inside: {time.monotonic() - begun:.0f} s\n{said[said.index('| scheme') :]}")
    made = folder / "runs" / "quickstart"
    rows = [line for line in (made / "results.md").read_text().splitlines() if line.startswith("|")]
    assert [row.split("|")[1].strip() for row in rows[2:]] == ["lns", "pre_ln", "pre_ln"]
    assert (made / "comparison.png").read_bytes().startswith(b"\x89PNG")
    for arm in ("lns", "pre_ln_plain", "pre_ln_scaled"):
        assert json.loads((made / arm / "events.jsonl").read_text().splitlines()[-1])["event"] == "finished"
    assert not foreign_files(folder / "runs", user)


@pytest.fixture
def template(daemon, outside, text_data):
    """examples/docker/run.sh as a user starts it who is not root; ``start(name)`` trains into a folder of that name."""
    folder, user = outside
    data = folder / "runs" / "data"
    data.mkdir(parents=True)
    for path in text_data.iterdir():
        (data / path.name).write_bytes(path.read_bytes())
    for path in (folder / "runs", data):
        os.chown(path, user, user)
    variables = {"IMAGE": CPU, "GPUS": "", "DATA": "runs/data/some", "PROCESSES": "2", "SAVE_INTERVAL": "1000"}
    tiny = [*TINY[2:], "--train-iters", str(STEPS), "--eval-interval", "1000", "--pipeline-model-parallel-size", "2"]

    def start(name: str) -> subprocess.Popen:
        return subprocess.Popen(
            ("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", str(folder / "run.sh"), *tiny),
            cwd=folder,
            env={**daemon.environment, **variables, "SAVE": f"runs/{name}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start, folder / "runs", user


def losses(save: Path) -> dict[int, float]:
    file = save / "metrics.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return {one["step"]: one["value"] for one in records if one["name"] == "lm loss"}


def test_the_template_trains_stops_and_resumes_to_the_same_losses(daemon, template):
    start, runs, user = template
    whole = start("whole")
    said = whole.communicate(timeout=600)[0]
    assert whole.returncode == 0, said[-3000:]
    assert sorted(losses(runs / "whole")) == list(range(1, STEPS + 1))

    stopped = start("stopped")
    deadline = time.monotonic() + 300
    while max(losses(runs / "stopped"), default=0) < 30:
        assert stopped.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    daemon.run("stop", *daemon.run("ps", "--quiet").split())
    said = stopped.communicate(timeout=300)[0]
    events = [json.loads(line)["event"] for line in (runs / "stopped" / "events.jsonl").read_text().splitlines()]
    assert stopped.returncode != 0 and events[-1] == "stopped by a signal", said[-3000:]
    assert 30 <= max(losses(runs / "stopped")) < STEPS

    further = start("stopped")
    said = further.communicate(timeout=600)[0]
    assert further.returncode == 0, said[-3000:]
    assert losses(runs / "stopped") == losses(runs / "whole")
    assert not foreign_files(runs / "whole", user) and not foreign_files(runs / "stopped", user)
    assert daemon.run("ps", "--all", "--quiet") == ""


@pytest.fixture(scope="module")
def dependencies_in_docker(daemon):
    """A base for Docker's own builder: the image without user and project, so that no build needs a network."""
    undone = f"FROM {CPU}\nUSER root\nRUN userdel trainer && rm -r /workspace/*\n"
    command = (CLIENT, "build", "--quiet", "--network", "none", "--tag", "dependencies", "-")
    done = subprocess.run(command, input=undone, env=daemon.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return "dependencies"


@pytest.mark.parametrize("name", ["Dockerfile.cpu", "Dockerfile"])
def test_dockers_own_builder_accepts_the_files(daemon, dependencies_in_docker, project, name):
    given = ("--network", "none", "--build-arg", f"BASE={dependencies_in_docker}")
    daemon.run("build", *given, "--tag", f"built:{name.lower()}", "--file", name, ".", cwd=project)
    image = f"built:{name.lower()}"
    assert daemon.run("image", "inspect", "--format", "{{.Config.User}}", image).strip() == "10001"
    command = ("python", "-m", "megatron_cod.training.pretrain", "--help")
    assert "--norm-scheme NAME" in daemon.run("run", "--rm", image, *command)
    inside = {"LICENSE", "examples", "megatron_cod", "recipes", "requirements.docker.txt", "runs", "tools"}
    assert set(daemon.run("run", "--rm", image, "ls").splitlines()) - {daemon.WARNING} == inside
