"""A real Slurm runs the shipped templates, with their variables set: requeue, signals, time limit, lost ranks and nodes."""

import sys
from pathlib import Path

import numpy as np
import pytest

from megatron_cod.checkpoint.events import read_events
from megatron_cod.data.preprocessing.run import PreprocessJob, preprocess
from megatron_cod.data.sample_corpus import sample_corpus_path
from megatron_cod.data.tokenizers.choice import TokenizerChoice
from tests.conftest import ROOT
from tests.launch.runs import MODEL, events_of, losses_of, steps_done, undisturbed, wait_for
from tests.launch.slurm import Cluster, missing

pytestmark = [
    pytest.mark.launch,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(missing() is not None, reason=missing() or ""),
]
TEMPLATES = ROOT / "examples" / "slurm"
STEPS = 300
LONG = 2000
"""On a quick machine too more than the minute after which the signal of its time limit comes."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with Cluster(tmp_path_factory.mktemp("slurm") / "c") as made:
        yield made


@pytest.fixture(scope="module")
def whole(text_data, tmp_path_factory):
    return undisturbed(4, text_data, tmp_path_factory.mktemp("whole"), STEPS)


def submit(cluster: Cluster, text_data: Path, save: Path, steps: int, *options: str) -> str:
    """The template on 2 nodes x 2 tasks; the job's number."""
    found = cluster.run(
        *(
            "sbatch",
            "--parsable",
            "--ntasks-per-node=2",
            "--gpus-per-node=2",
            "--cpus-per-task=1",
            f"--output={save}.out",
        ),
        *options,
        *(str(TEMPLATES / "pretrain.sbatch"), *MODEL, "--train-iters", str(steps)),
        cwd=ROOT,
        RECIPE="recipes/debug.yaml",
        DATA=str(text_data / "some"),
        SAVE=str(save),
        SAVE_INTERVAL="50",
        PYTHON=sys.executable,
    )
    return found.strip()


def complete(cluster: Cluster, job: str, restarts: int, log: Path) -> None:
    """Wait until the job was queued again so often, and until it is done."""
    wait_for(lambda: int(cluster.facts(job).get("Restarts", 0)) >= restarts, 150, log)
    wait_for(lambda: cluster.facts(job)["JobState"] in ("COMPLETED", "FAILED", "TIMEOUT"), 400, log)
    assert cluster.facts(job)["JobState"] == "COMPLETED", log.read_text()[-3000:]


DISTURBANCES = {
    "requeue": lambda cluster, job: cluster.run("scontrol", "requeue", job),
    "a signal": lambda cluster, job: cluster.run("scancel", "--signal=USR1", f"{job}.0"),
    "killed rank": lambda cluster, job: cluster.kill_a_rank(2),
}


@pytest.mark.parametrize("name", DISTURBANCES)
def test_a_disturbed_job_ends_with_the_losses_of_the_undisturbed(cluster, text_data, whole, tmp_path, name):
    save, log = tmp_path / "run", tmp_path / "run.out"
    job = submit(cluster, text_data, save, STEPS)
    wait_for(lambda: steps_done(save) >= 60, 180, log)
    DISTURBANCES[name](cluster, job)
    complete(cluster, job, 1, log)
    assert losses_of(save) == whole
    assert events_of(save)[-1] == "finished"
    if name == "a signal":
        assert "stopped by a signal" in events_of(save)
    assert f"finished at step {STEPS}" in log.read_text()


@pytest.mark.skipif(missing(munge=True) is not None, reason=missing(munge=True) or "")
def test_with_munge_a_time_limit_and_a_lost_node_end_in_an_exact_continuation(text_data, tmp_path):
    """Slurm's own time limit, with the template's signal before it; later a node that loses power and comes back."""
    save, log = tmp_path / "run", tmp_path / "run.out"
    whole = undisturbed(4, text_data, tmp_path / "whole", LONG)
    with Cluster(tmp_path / "c", munge=True) as cluster:
        # The template asks for five minutes; Slurm counts limits in minutes, and sends the signal somewhat earlier.
        job = submit(cluster, text_data, save, LONG, "--time=2", "--signal=USR1@60")
        wait_for(lambda: int(cluster.facts(job).get("Restarts", 0)) >= 1, 150, log)
        first = steps_done(save)
        assert events_of(save)[:2] == ["start", "stopped by a signal"] and 0 < first < LONG
        wait_for(lambda: steps_done(save) >= first + 60, 180, log)
        # On a slow machine there were more time limits by now.
        restarts = int(cluster.facts(job)["Restarts"]) + 1
        cluster.lose(2)
        wait_for(lambda: int(cluster.facts(job)["Restarts"]) >= restarts, 120, log)
        cluster.start(2)
        complete(cluster, job, restarts, log)
    assert losses_of(save) == whole
    assert events_of(save)[-1] == "finished"


def test_a_run_knows_the_end_of_its_job_without_a_signal(cluster, text_data, tmp_path):
    """``--time-limit auto``, whether this Slurm tells the end of a job to its processes or not."""
    save, log = tmp_path / "run", tmp_path / "run.out"
    job = submit(cluster, text_data, save, 100_000, "--time=2", "--signal=CONT@1")  # a signal that does nothing
    try:
        wait_for(lambda: int(cluster.facts(job).get("Restarts", 0)) >= 1, 150, log)
    finally:
        cluster.run("scancel", job)
    told = [one for one in read_events(save) if one["event"] == "stopped by a signal"]
    assert told and told[0]["signal"] == "time limit" and told[0]["step"] > 0, log.read_text()[-3000:]


def test_port_in_use_is_skipped_and_the_preflight_runs_in_an_allocation(cluster, text_data, tmp_path):
    """The port that the job's number leads to belongs to another program: the next one is taken."""
    log = tmp_path / "out"
    options = ["--parsable", "--hold", "--nodes=2", "--ntasks-per-node=2", f"--output={log}"]
    variables = {"RECIPE": "recipes/debug.yaml", "DATA": str(text_data / "some"), "SAVE": str(tmp_path / "run")}
    variables["PYTHON"] = sys.executable
    found = cluster.run("sbatch", *options, str(ROOT / "examples" / "preflight.sh"), *MODEL, cwd=ROOT, **variables)
    job = found.strip()
    port = 20000 + int(job) % 10000
    listen = f"import socket, time; s = socket.create_server(('', {port})); time.sleep(600)"
    other = cluster.hosts[1].start([sys.executable, "-c", listen], tmp_path / "other.log")
    try:
        cluster.run("scontrol", "release", job)
        wait_for(lambda: cluster.facts(job)["JobState"] in ("COMPLETED", "FAILED"), 180, log)
    finally:
        other.kill()
        other.wait()
    assert cluster.facts(job)["JobState"] == "COMPLETED", log.read_text()
    assert f"ports: rendezvous at node1:{port + 1}" in log.read_text()
    assert "4 processes on 2 machines" in log.read_text()


def documents(prefix: Path) -> list[list[int]]:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    data = IndexedDataset(str(prefix))
    return [np.concatenate([data[one] for one in range(a, b)]).tolist() for a, b in _pairs(data.document_indices)]


def _pairs(bounds) -> list[tuple[int, int]]:
    return list(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))


def test_job_array_preprocesses_as_one_job_does(cluster, tmp_path):
    """Four files in three tasks: the first takes the first file and the last."""
    lines = sample_corpus_path().read_text().splitlines()
    files = [tmp_path / f"part{number}.jsonl" for number in range(4)]
    for number, file in enumerate(files):
        file.write_text("\n".join(lines[number::4][:3]) + "\n")
    output, log = tmp_path / "array", tmp_path / "%a.out"
    found = cluster.run(
        *("sbatch", "--parsable", "--array=0-2", "--cpus-per-task=1", f"--output={log}"),
        str(TEMPLATES / "preprocess.sbatch"),
        cwd=ROOT,
        INPUTS=str(tmp_path / "part*.jsonl"),
        OUTPUT=str(output),
        PYTHON=sys.executable,
    )
    job = found.strip()
    wait_for(lambda: not cluster.run("squeue", "-h", "-j", job).strip(), 180, *tmp_path.glob("*.out"))
    said = "\n".join(path.read_text() for path in sorted(tmp_path.glob("?.out")))
    whole = tmp_path / "whole"
    tokenizer = TokenizerChoice("ByteLevelTokenizer")
    preprocess(PreprocessJob(tuple(map(str, files)), str(whole), tokenizer=tokenizer, append_eod=True))
    expected = documents(Path(f"{whole}_text_document"))
    made = [documents(Path(f"{output}-{task}_text_document")) for task in range(3)]
    assert [len(task) for task in made] == [6, 3, 3], said
    assert made[0][:3] + made[1] + made[2] + made[0][3:] == expected
