"""Launch templates: linted, short, not different where they need not be; executed on one machine."""

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from megatron_cod.analysis.metrics import TRAIN_LOSS, read_metrics
from megatron_cod.preflight import job
from tests.commands import tool
from tests.conftest import ROOT
from tests.launch.runs import events_of, steps_done, wait_for
from tests.ports import free_port

SCRIPTS = sorted([*ROOT.glob("examples/**/*.sh"), *ROOT.glob("examples/**/*.sbatch")])
SHELL = [*SCRIPTS, *sorted(ROOT.glob("tools/*.sh"))]
JOBS = ["pretrain.sbatch", "pretrain_container.sbatch"]


@pytest.mark.parametrize("script", SHELL, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    done = subprocess.run([tool("shellcheck"), "-x", "-P", str(ROOT), str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_shell_scripts_are_formatted():
    done = subprocess.run([tool("shfmt"), "-d", "-i", "4", *map(str, SHELL)], capture_output=True, text=True)
    assert done.returncode == 0, f"shfmt -w -i 4 would change:\n{done.stdout}"


def test_the_container_template_is_the_other_one_in_a_container():
    """It sources pretrain.sbatch; only what Slurm reads of a file must be said in both."""
    plain, container = ((ROOT / "examples" / "slurm" / name).read_text() for name in JOBS)
    header = re.findall(r"^#SBATCH .*$", plain, re.M)
    assert len(header) > 5 and re.findall(r"^#SBATCH .*$", container, re.M) == header
    assert container.splitlines()[-1] == f". examples/slurm/{JOBS[0]}"
    shared = set(code_of(plain)) & set(code_of(container))
    assert all(line.startswith(("set ", "cd ", "RECIPE=", "DATA=", "SAVE=")) for line in shared), shared


def code_of(script: str) -> list[str]:
    return [line for line in script.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_templates_are_short_and_say_what_to_change(script):
    text = script.read_text()
    assert len(text.splitlines()) < 60
    if script.name not in ("environment.sh", "functions.sh"):
        assert "the five things to change" in text
        marked = text.split("the five things to change")[1].split("# -----")[0]
        assert len(re.findall(r"^[A-Z_]+=", marked, re.M)) == 5
        what = (
            "megatron_cod.training.pretrain",
            "megatron_cod.cli.preprocess",
            "megatron_cod.cli.preflight",
            "examples/single_node.sh",
            "slurm/pretrain.sbatch",
        )
        assert any(name in text for name in what)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_sbatch_lines_have_no_hash(script):
    """Slurm cuts an #SBATCH line at an unquoted #, silently."""
    for line in script.read_text().splitlines():
        if line.startswith("#SBATCH"):
            assert "#" not in line[1:], line


TOY = [
    "--num-layers",
    "4",
    "--hidden-size",
    "64",
    "--ffn-hidden-size",
    "192",
    "--seq-length",
    "32",
    "--eval-iters",
    "1",
]


def variables_of(save: Path, text_data: Path) -> dict[str, str]:
    """The environment of a script of ``examples/``."""
    data = {f"{part.upper()}": str(text_data / f"some_{part}_text_document") for part in ("train", "valid")}
    paths = {"SAVE": str(save), "DATA": str(text_data / "some"), "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    return {**os.environ, **data, **paths, "PROCESSES": "2"}


def execute(name: str, save: Path, text_data: Path, *flags: str, expect: int = 0, **variables: str) -> str:
    """Run a script of ``examples/`` from another directory; what it said."""
    environment = {**variables_of(save, text_data), **variables}
    command = [str(ROOT / "examples" / name), *TOY, *flags]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(command, cwd=save.parent, env=environment, text=True, timeout=300, **pipe)
    assert done.returncode == expect, done.stdout[-3000:]
    return done.stdout


def bytes_of_tensors(checkpoint: Path) -> int:
    """Without what files and random states add, which counts at this size alone."""
    items = FileSystemReader(checkpoint).read_metadata().state_dict_metadata.values()
    tensors = [item for item in items if isinstance(item, TensorStorageMetadata)]
    return sum(item.size.numel() * item.properties.dtype.itemsize for item in tensors)


@pytest.mark.slow
def test_single_node_trains_and_resumes(text_data, tmp_path):
    save = tmp_path / "run"
    flags = ["--pipeline-model-parallel-size", "2", "--train-iters", "12"]
    execute("single_node.sh", save, text_data, *flags, "--exit-interval", "6", SAVE_INTERVAL="6")
    size = bytes_of_tensors(save / "iter_0000006")
    output = execute("single_node.sh", save, text_data, *flags, SAVE_INTERVAL="6")
    assert "step 12/12 | loss" in output
    assert sorted(read_metrics(save / "metrics.jsonl").scalars[TRAIN_LOSS]) == list(range(1, 13))
    # What the preflight says a checkpoint takes.
    data = ["--train-data-path", str(text_data / "some_train_text_document"), "--eval-iters", "0"]
    flags = ["--recipe", str(ROOT / "recipes" / "debug.yaml"), *TOY, *flags, *data]
    assert job.describe(2, flags)["checkpoint_bytes"] == size


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGKILL], ids=["USR1", "KILL"])
def test_single_node_leaves_no_ranks_behind(text_data, tmp_path, number):
    """SIGUSR1, by which a scheduler warns: the ranks, and what loads their data, save and end. SIGKILL: they end."""
    save, log = tmp_path / "run", tmp_path / "log"
    flags = ["--pipeline-model-parallel-size", "2", "--train-iters", "100000", "--num-workers", "2"]
    command = [str(ROOT / "examples" / "single_node.sh"), *TOY, *flags]
    with (
        log.open("w") as out,
        subprocess.Popen(command, env=variables_of(save, text_data), stdout=out, stderr=subprocess.STDOUT) as script,
    ):
        wait_for(lambda: steps_done(save) >= 3, 120, log)
        below = psutil.Process(script.pid).children(recursive=True)
        assert len(below) > 2
        script.send_signal(number)
        try:
            _, left = psutil.wait_procs(below, timeout=60)
            assert not left, log.read_text()[-3000:]
        finally:
            for process in below:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
    assert events_of(save) == ["start", "stopped by a signal"][: 2 if number == signal.SIGUSR1 else 1]
    if number == signal.SIGUSR1:
        assert script.returncode == 138 and list(save.glob("iter_*"))


@pytest.mark.slow
def test_single_node_ends_with_one_line_on_bad_input_and_does_not_try_again(text_data, tmp_path):
    output = execute("single_node.sh", tmp_path / "run", text_data, expect=2, TRAIN=str(tmp_path / "none"))
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert (
        lines[0].startswith(f"error: dataset {tmp_path}/none does not exist") and lines[-1] == output.splitlines()[-1]
    )
    assert len(lines) == 2 and lines[0] == lines[1]  # the rank's, and torchrun's last


@pytest.mark.slow
def test_preflight_on_this_machine(text_data, tmp_path):
    port, table = str(free_port(26000)), tmp_path / "table.json"
    output = execute("preflight.sh", tmp_path / "run", text_data, "--json", str(table), PORT=port)
    rows = [line.split() for line in output.splitlines()]
    assert [
        "node",
        "versions",
        "clocks",
        "ports",
        "interfaces",
        "gpus",
        "bandwidth",
        "save",
        "disk",
        "data",
        "job",
    ] in rows
    assert output.splitlines()[-1] == "preflight passed"
    found = json.loads(table.read_text())
    assert found["passed"] and found["figures"]["bandwidth"]["all_reduce"][0]["bus"] > 0
    assert not list((tmp_path / "run").glob(".mark*"))
    wrong = ["--json", str(table), "--global-batch-size", "3"]
    output = execute("preflight.sh", tmp_path / "run", text_data, *wrong, expect=1, PORT=port)
    assert output.splitlines()[-1] == "preflight failed" and not json.loads(table.read_text())["passed"]
    assert "job: would be refused: --global-batch-size 3 is not a multiple of" in output
