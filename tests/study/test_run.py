"""A study of seconds: run, killed at a random moment and resumed, failures, Slurm's array."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from megatron_cod import __version__
from megatron_cod.errors import UserError
from megatron_cod.launch.local_run import RunFailed
from megatron_cod.study.command import Command
from megatron_cod.study.diagnosis import diagnose, removal_costs
from megatron_cod.study.directory import RECORD, StudyDirectory
from megatron_cod.study.imported_runs import import_runs
from megatron_cod.study.scheduler import runnable
from megatron_cod.study.status import status_lines
from megatron_cod.study.study_file import read_study
from tests.conftest import ROOT
from tests.distributed.launch import FORKS
from tests.study.small import launch, run_study, write_small
from tests.training.evaluation.datasets import write_dataset

FILES = ("results.md", "runs.csv", "raw.jsonl")


SIZES = {"one depth, one seed": ((2,), (11,)), "two depths, two seeds": ((2, 4), (11, 12))}


@pytest.fixture(
    scope="module", params=[name if "one" in name else pytest.param(name, marks=pytest.mark.slow) for name in SIZES]
)
def small(text_data, tmp_path_factory, request):
    """(study file, its directory after a run to the end, what it printed)."""
    folder = tmp_path_factory.mktemp("study")
    for end in ("bin", "idx", "json"):
        shutil.copy(text_data / f"some_train_text_document.{end}", folder)
    write_dataset(folder / "some_valid_text_document", [np.random.default_rng(3).integers(32, 120, 700)])
    file = write_small(folder, folder / "some", *SIZES[request.param])
    return file, folder / "out", run_study(file, folder / "out")


def reported(output) -> list[bytes]:
    return [(output / "report" / name).read_bytes() for name in FILES]


def test_runs_every_arm_at_every_rate_and_fresh_seeds_at_the_best(small):
    file, output, lines = small
    study = read_study(file)
    runs = len(study.shapes) * len(study.arms) * (len(study.grid.rates) + len(study.seeds))
    records = [json.loads(path.read_text()) for path in output.glob(f"runs/*/*/*/*/{RECORD}")]
    assert len(records) == runs and all(one["loss"] for one in records)
    assert sum("started" in line for line in lines) == runs and lines[0].startswith("question: ")
    assert {path.name for path in (output / "report").iterdir()} >= {*FILES, "report.html", "loss_against_rate.png"}
    page = (output / "report" / "report.html").read_text()
    assert (
        page.count("data:image/png;base64,") == 2 + (len(study.shapes) > 1)
        and "http" not in page.split("</head>")[1].split("base64")[0]
    )


def test_paired_runs_begin_with_the_same_tokens_and_draws(small):
    """Before the first update arms that differ in the norm's factor alone have the same embedding and data."""
    _, output, _ = small
    starts = {}
    for path in output.glob(f"runs/L2_h16/*/lr_0.016/*/{RECORD}"):
        one = json.loads(path.read_text())
        starts.setdefault(one["seed"], []).append(one["start_loss"])
    assert all(abs(first - second) < 0.05 for first, second in (losses for losses in starts.values()))
    assert len({round(losses[0], 6) for losses in starts.values()}) == len(starts)


def test_repeating_runs_nothing_and_gives_the_same_bytes(small):
    file, output, _ = small
    before = reported(output)
    assert not any("started" in line or "resumed" in line for line in run_study(file, output))
    assert reported(output) == before


def _run(file, output):
    os.setsid()
    run_study(file, output)


def _is_running(session: int) -> bool:
    """Whether a process of the session is left: ranks are forked and have groups of their own."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, found = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it has ended
            continue
        if int(found) == session and state != "Z":
            return True
    return False


@pytest.mark.slow
def test_killed_study_resumes_to_equal_bytes(small, tmp_path):
    file, whole, _ = small
    seed = random.SystemRandom().randrange(10**6)
    print("seed", seed)
    delays = random.Random(seed)
    output = tmp_path / "out"
    for _ in range(len(read_study(file).shapes)):
        process = FORKS.Process(target=_run, args=(file, output))
        process.start()
        deadline = time.monotonic() + 120
        while not list(output.glob("runs/*/*/*/*/metrics.jsonl")) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(delays.uniform(0, 6))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        deadline = time.monotonic() + 60
        while _is_running(process.pid) and time.monotonic() < deadline:  # the runs see that it has gone, and end
            time.sleep(0.1)
    done = len(list(output.glob(f"runs/*/*/*/*/{RECORD}")))
    print("done when it was killed:", done)
    run_study(file, output)
    assert reported(output) == reported(whole)


@pytest.mark.slow
def test_failed_run_is_reported_and_tried_again(small, tmp_path):
    file, _, _ = small

    def fails_once(flags, log, show, slot):
        if "--seed" in flags and "0.016" in flags:
            raise RunFailed("error: the disk is full")
        launch(flags, log, show, slot)

    lines: list[str] = []
    command = Command(file, tmp_path / "out", 2, lines.append, fails_once)
    with pytest.raises(UserError, match=r"\d runs failed, the first .* lr 0.016, seed 1: the disk is full; repeat"):
        command.run()
    lines.clear()
    command.status()
    half = 2 * len(command.directory.study.shapes)
    assert lines[0].startswith(f"{half} runs done (0 diverged), 0 running, {half} failed, at least ")
    assert "the disk is full" in (tmp_path / "out" / "report" / "results.md").read_text()


def test_report_is_made_again_from_raw_records(small, tmp_path):
    file, output, _ = small
    Command(file, tmp_path / "again", 1, print, launch).report_of(output / "report")
    assert (tmp_path / "again" / "results.md").read_bytes() == (output / "report" / "results.md").read_bytes()
    with pytest.raises(UserError, match="holds no records of this study"):
        Command(file, tmp_path / "again", 1, print, launch).report_of(tmp_path)


@pytest.mark.slow
def test_study_moves_to_another_machine_with_its_report(small, tmp_path):
    """Half of the runs are imported, the others are run, and the report has the same bytes."""
    file, output, _ = small
    moved = shutil.copytree(output / "report", tmp_path / "report")
    records = (moved / "raw.jsonl").read_text().splitlines()
    (moved / "raw.jsonl").write_text("\n".join(records[: len(records) // 2]) + "\n")
    lines: list[str] = []
    Command(file, tmp_path / "out", 2, lines.append, launch).run(moved)
    assert sum("started" in line for line in lines) == len(records) - len(records) // 2
    assert f"{len(records) // 2} finished runs imported from {moved}" in lines
    assert reported(tmp_path / "out") == reported(output)
    versions = json.loads((tmp_path / "out" / "report" / "study.json").read_text())["code"]
    assert [one.split()[0] for one in versions] == [__version__]
    assert f"runs made by megatron_cod {versions[0]}\n" in (tmp_path / "out" / "report" / "results.md").read_text()


def test_imported_runs_do_not_predict_the_time_left(small, tmp_path):
    file, output, _ = small
    moved = shutil.copytree(output / "report", tmp_path / "report")
    records = (moved / "raw.jsonl").read_text().splitlines()
    (moved / "raw.jsonl").write_text(records[0] + "\n")
    directory = StudyDirectory(tmp_path / "out", read_study(file))
    directory.bind()
    assert import_runs(directory, moved) == 1
    line = status_lines(directory)[0]
    assert line.startswith("1 runs done") and "one after another" not in line


@pytest.mark.slow
def test_versions_are_those_that_made_runs(small, tmp_path, monkeypatch):
    """A later version that only repeats the command is not named; one that makes a run is."""
    file, output, _ = small
    again = shutil.copytree(output, tmp_path / "out")
    monkeypatch.setattr("megatron_cod.study.directory.package_version", lambda: "9.9.9")
    run_study(file, again)
    assert reported(again) == reported(output)
    shutil.rmtree(min(again.glob(f"runs/*/*/*/*/{RECORD}")).parent)
    run_study(file, again)
    versions = StudyDirectory(again, read_study(file)).versions()
    assert len(versions) == 2 and versions[-1] == "9.9.9"


def test_report_of_no_study_is_refused(small, tmp_path):
    with pytest.raises(UserError, match="nowhere holds no study yet"):
        Command(small[0], tmp_path / "nowhere", 1, print, launch).report()


@pytest.mark.parametrize(
    ("key", "what"), [("digest", "another study file"), ("text", "another text"), (None, "not a report of this study")]
)
def test_records_of_another_study_are_not_imported(small, tmp_path, key, what):
    file, output, _ = small
    moved = shutil.copytree(output / "report", tmp_path / "report")
    facts = json.loads((moved / "study.json").read_text())
    (moved / "study.json").write_text("{" if key is None else json.dumps(facts | {key: "other"}))
    with pytest.raises(UserError, match=what):
        Command(file, tmp_path / "out", 2, print, launch).run(moved)
    assert not list(tmp_path.glob("out/runs/*"))


def test_slurm_array_gives_each_task_its_run(small, tmp_path):
    """Submitted with the shipped template replaced by one that prints what it is given."""
    file, _, _ = small
    command = Command(file, tmp_path / "out", 1, lambda line: None, launch)
    command.slurm()
    script = tmp_path / "out" / "array.sbatch"
    checked = subprocess.run([sys.executable.replace("python", "shellcheck"), "-x", str(script)], cwd=ROOT)
    assert checked.returncode == 0
    runs = 4 * len(command.directory.study.shapes)
    assert (
        f"#SBATCH --array=0-{runs - 1}\n" in script.read_text() and "#SBATCH --ntasks-per-node=1" in script.read_text()
    )
    (tmp_path / "examples" / "slurm").mkdir(parents=True)
    (tmp_path / "examples" / "slurm" / "pretrain.sbatch").write_text('echo "$RECIPE|$DATA|$SAVE|$SAVE_INTERVAL|$*"\n')
    directory = command.directory
    for number, job in list(enumerate(runnable(directory.study, {})))[::3]:
        task = {**os.environ, "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_ARRAY_TASK_ID": str(number)}
        said = subprocess.run(["bash", str(script)], env=task, capture_output=True, text=True, check=True).stdout
        recipe, data, save, interval, flags = said.strip().split("|")
        assert (recipe, data, interval) == (str(directory.root / "recipe.yaml"), directory.prefix, "1")
        assert save == str(directory.root / job.folder)
        assert f"--lr {job.rate:g} " in flags and f"--seed {job.seed} " in flags and "--save" not in flags


def test_runs_of_an_array_are_collected(small, tmp_path):
    file, whole, _ = small
    command = Command(file, tmp_path / "out", 1, lambda line: None, launch)
    command.slurm()
    job = runnable(command.directory.study, {})[0]
    folder = tmp_path / "out" / job.folder
    folder.mkdir(parents=True)
    metrics = (whole / job.folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text("".join(metrics.splitlines(keepends=True)[:10]))
    command.slurm()
    assert job not in command.directory.results()  # it did not end
    (folder / "metrics.jsonl").write_text(metrics)
    command.slurm()
    assert (folder / RECORD).read_bytes() == (whole / job.folder / RECORD).read_bytes()


@pytest.mark.slow
def test_depth_diagnostics_of_the_first_final_seed(small):
    file, output, _ = small
    directory = StudyDirectory(output, read_study(file))
    lines: list[str] = []
    diagnose(directory, lines.append)
    costs = removal_costs(directory)
    study = directory.study
    assert set(costs) == {(shape, arm) for shape in study.shapes for arm in study.arms}, lines
    assert all(len(rise) == shape.layers for (shape, _), rise in costs.items())
    lines.clear()
    diagnose(directory, lines.append)
    assert not lines  # measured once
