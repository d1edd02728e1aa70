"""A real Slurm runs the shipped template, with its variables set: requeue, the time limit's signal, a killed step."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.distributed.test_resume import succeed
from tests.launch.slurm import Cluster, missing

pytestmark = [
    pytest.mark.launch,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(missing() is not None, reason=missing() or ""),
]
TEMPLATE = ROOT / "examples" / "slurm" / "pretrain.sbatch"
STEPS = 300
MODEL = ["--num-layers", "4", "--hidden-size", "32", "--ffn-hidden-size", "64", "--seq-length", "32"]
MODEL += ["--train-iters", str(STEPS), "--eval-interval", "1000", "--log-interval", "50", "--eval-iters", "1"]
MODEL += ["--pipeline-model-parallel-size", "2", "--num-workers", "0"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with Cluster(tmp_path_factory.mktemp("slurm") / "c") as made:
        yield made


@pytest.fixture(scope="module")
def data(text_data):
    return [
        *("--train-data-path", str(text_data / "some_train_text_document")),
        *("--valid-data-path", str(text_data / "some_valid_text_document")),
    ]


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The undisturbed run's losses."""
    folder = tmp_path_factory.mktemp("whole")
    recipe = ["--recipe", str(ROOT / "recipes" / "debug.yaml")]
    succeed(4, [*recipe, *MODEL, *data, "--save", str(folder), "--save-interval", "50"])
    return losses_of(folder)


def losses_of(folder: Path) -> dict[int, float]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {one["step"]: one["value"] for one in records if one["name"] == "lm loss"}


def submit(cluster: Cluster, text_data: Path, save: Path, *options: str) -> str:
    """The template on 2 nodes x 2 tasks; the job's number. Its own paths end in _train_text_document as it expects."""
    found = cluster.run(
        *("sbatch", "--parsable", "--ntasks-per-node=2", "--gpus-per-node=2", f"--output={save}.out", *options),
        *(str(TEMPLATE), *MODEL),
        cwd=ROOT,
        RECIPE="recipes/debug.yaml",
        DATA=str(text_data / "some"),
        SAVE=str(save),
        SAVE_INTERVAL="50",
        PYTHON=sys.executable,
    )
    return found.strip()


def wait_for(what, seconds: float, log: Path) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        said = log.read_text()[-3000:] if log.exists() else "no output"
        assert time.monotonic() < deadline, f"not within {seconds} s:\n{said}"
        time.sleep(0.5)


def steps_done(save: Path) -> int:
    return max(losses_of(save), default=0) if (save / "metrics.jsonl").exists() else 0


def kill_a_rank(save: Path) -> None:
    """SIGKILL to one of the ranks that write there."""
    listed = subprocess.run(["pgrep", "-f", f"megatron_cod.training.pretrain.*{save}"], capture_output=True, text=True)
    ranks = [int(pid) for pid in listed.stdout.split() if _is_rank(int(pid))]
    assert ranks
    os.kill(ranks[-1], signal.SIGKILL)


def _is_rank(pid: int) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    return b"RANK=" in environment and b"bash" not in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]


DISTURBANCES = {
    "requeue": lambda cluster, job, save: cluster.run("scontrol", "requeue", job),
    "time limit's signal": lambda cluster, job, save: cluster.run("scancel", "--signal=USR1", f"{job}.0"),
    "killed rank": lambda cluster, job, save: kill_a_rank(save),
}


@pytest.mark.parametrize("name", DISTURBANCES)
def test_a_disturbed_job_ends_with_the_losses_of_the_undisturbed(cluster, text_data, whole, tmp_path, name):
    save, log = tmp_path / "run", tmp_path / "run.out"
    job = submit(cluster, text_data, save)
    wait_for(lambda: steps_done(save) >= 60, 180, log)
    DISTURBANCES[name](cluster, job, save)
    wait_for(lambda: int(cluster.facts(job).get("Restarts", 0)) >= 1, 120, log)
    wait_for(lambda: cluster.facts(job)["JobState"] in ("COMPLETED", "FAILED"), 300, log)
    assert cluster.facts(job)["JobState"] == "COMPLETED", log.read_text()[-3000:]
    assert losses_of(save) == whole
    events = [json.loads(line)["event"] for line in (save / "events.jsonl").read_text().splitlines()]
    assert events[-1] == "finished"
    if name == "time limit's signal":
        assert "stopped by a signal" in events
    assert "finished at step 300" in log.read_text()
