"""A real Slurm runs the container template; a stand-in for pyxis has every task enter the image that was built."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, TINY
from tests.containers.conftest import log
from tests.distributed.runs import succeed
from tests.launch import slurm

HEADER = Path("/usr/include/slurm/spank.h")
STEPS = 200
FLAGS = [*TINY[2:], "--train-iters", str(STEPS), "--eval-interval", "1000", "--pipeline-model-parallel-size", "2"]


def missing() -> str | None:
    if not HEADER.exists() or shutil.which("gcc") is None:
        return "not installed: gcc or slurm/spank.h (Debian: apt install gcc libslurm-dev)"
    return slurm.missing()


pytestmark = [
    pytest.mark.containers,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(missing() is not None, reason=missing() or ""),
]


@pytest.fixture(scope="module")
def image(store, cpu_image):
    """The image's files as a directory, its variables where enroot writes them."""
    template = "{{range .OCIv1.Config.Env}}{{println .}}{{end}}"
    variables = store.run("inspect", "--type", "image", "--format", template, cpu_image)
    with store.mounted(cpu_image) as root:
        (root / "etc" / "environment").write_text(variables)
        yield root


@pytest.fixture(scope="module")
def cluster(image, tmp_path_factory):
    """After ``image``: what is mounted later its nodes need not see."""
    folder = tmp_path_factory.mktemp("slurm")
    plugin = folder / "pyxis.so"
    source = Path(__file__).with_name("pyxis.c")
    command = ("gcc", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o", str(plugin), str(source))
    subprocess.run(command, check=True)
    with slurm.Cluster(folder / "c", plugstack=f"required {plugin}\n") as made:
        yield made


def submit(cluster, checkout: Path, image: Path, runs: Path) -> str:
    """The container template on 2 nodes x 2 tasks; the job's number. Nothing of this Python is known to it."""
    found = cluster.run(
        *(
            "sbatch",
            "--parsable",
            "--ntasks-per-node=2",
            "--gpus-per-node=2",
            "--cpus-per-task=1",
            f"--output={runs}/out",
        ),
        *("examples/slurm/pretrain_container.sbatch", *FLAGS),
        cwd=checkout,
        IMAGE=str(image),
        MOUNTS=f"{runs}:/workspace/runs",
        RECIPE="recipes/debug.yaml",
        DATA="runs/data/some",
        SAVE="runs/job",
        SAVE_INTERVAL="50",
        PYTHON="/nowhere/python",
        PYTHONPATH="/nowhere",
    )
    return found.strip()


def losses(save: Path) -> dict[int, float]:
    file = save / "metrics.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return {one["step"]: one["value"] for one in records if one["name"] == "lm loss"}


def wait_for(what, seconds: float, log: Path) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        said = log.read_text()[-3000:] if log.exists() else "no output"
        assert time.monotonic() < deadline, f"not within {seconds} s:\n{said}"
        time.sleep(0.5)


@pytest.fixture
def runs(tmp_path, text_data):
    shutil.copytree(text_data, tmp_path / "runs" / "data")
    return tmp_path / "runs"


def stop_in_mid_run(cluster, job: str, runs: Path) -> None:
    """The time limit's signal, after some steps."""
    wait_for(lambda: max(losses(runs / "job"), default=0) >= 60, 300, runs / "out")
    cluster.run("scancel", "--signal=USR1", f"{job}.0")


def end_of(cluster, job: str, runs: Path) -> str:
    wait_for(lambda: cluster.facts(job)["JobState"] in ("COMPLETED", "FAILED"), 300, runs / "out")
    return cluster.facts(job)["JobState"]


def test_a_requeued_job_ends_with_the_losses_of_an_undisturbed_run_without_containers(
    cluster, project, image, runs, text_data, tmp_path
):
    begun = time.monotonic()
    job = submit(cluster, project, image, runs)
    stop_in_mid_run(cluster, job, runs)
    wait_for(lambda: int(cluster.facts(job).get("Restarts", 0)) >= 1, 120, runs / "out")
    assert end_of(cluster, job, runs) == "COMPLETED", (runs / "out").read_text()[-3000:]
    log(f"the container template under Slurm, queued again once: {time.monotonic() - begun:.0f} s")
    events = [json.loads(line)["event"] for line in (runs / "job" / "events.jsonl").read_text().splitlines()]
    assert "stopped by a signal" in events and events[-1] == "finished"
    resolved = (runs / "job" / "resolved_args.yaml").read_text()
    assert str(runs) not in resolved and str(project) not in resolved  # paths of the image alone

    here = tmp_path / "here"
    data = [f"--{kind}-data-path={text_data}/some_{kind}_text_document" for kind in ("train", "valid")]
    recipe = ["--recipe", str(ROOT / "recipes" / "debug.yaml")]
    succeed(4, [*recipe, *FLAGS, *data, "--save", str(here), "--save-interval", "50"])
    assert losses(runs / "job") == losses(here)


def test_a_job_that_asks_outside_the_image_is_not_queued_again(cluster, project, image, runs, tmp_path):
    """The mutant of the template: whether to queue again is asked where there is no such Python."""
    wrong = tmp_path / "wrong"
    shutil.copytree(project, wrong)
    template = wrong / "examples" / "slurm" / "pretrain_container.sbatch"
    template.write_text(re.sub(r"^once=.*$", "once=()", template.read_text(), flags=re.M))
    job = submit(cluster, wrong, image, runs)
    stop_in_mid_run(cluster, job, runs)
    assert end_of(cluster, job, runs) == "FAILED"
    assert cluster.facts(job)["Restarts"] == "0"


def test_ranks_are_within_the_image_and_nothing_else_is(cluster, image):
    asked = "import sys, megatron_cod; print(sys.executable, megatron_cod.__file__)"
    inside = (f"--container-image={image}", "--container-workdir=/workspace")
    said = cluster.run("srun", "-n1", *inside, "python", "-c", asked, PYTHONPATH="/nowhere")
    assert said.split() == ["/usr/local/bin/python", "/workspace/megatron_cod/__init__.py"]
    assert "/workspace/" not in cluster.run("srun", "-n1", sys.executable, "-c", asked, PYTHONPATH=str(ROOT))
    assert os.listdir(image / "workspace" / "runs") == []  # the mounts are the tasks' own


def test_an_image_that_is_not_there_ends_the_job_at_once(cluster, project, tmp_path, runs):
    job = submit(cluster, project, tmp_path / "none", runs)
    assert end_of(cluster, job, runs) == "FAILED"
    assert "pyxis stand-in: mount" in (runs / "out").read_text()
