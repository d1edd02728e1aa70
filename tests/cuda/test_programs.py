"""Every program that builds a model runs on a GPU without a flag of its own: the README's commands, at toy size."""

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from megatron_cod.cli.main import COMMANDS
from megatron_cod.cli.training import ENTRIES
from megatron_cod.data.sample_corpus import prepare_sample, write_sample_conversations
from tests.commands import TOY, readme_commands
from tests.conftest import ROOT
from tests.cuda.programs import DEBUG, NO_MODEL, PROGRAMS, PYTHON, THIN


def test_every_program_is_run_here():
    tools = {path.stem for path in (ROOT / "tools").glob("*.py")}
    entries = {
        path.stem
        for path in (ROOT / "megatron_cod" / "training").glob("*.py")
        if '__name__ == "__main__"' in path.read_text()
    }
    # The other commands are what a script of tools/ or a module of training/ starts.
    started = "".join(path.read_text() for path in (ROOT / "tools").glob("*.py"))
    alone = {name for name in COMMANDS if f"``megatron-cod {name}``" not in started} - set(ENTRIES) | entries
    run = {name.split()[0].rstrip(",") for name in PROGRAMS} | {"pretrain", "quickstart"}
    assert tools | alone == run | set(NO_MODEL), sorted((tools | alone) ^ (run | set(NO_MODEL)))


def execute(command: list[str], home: Path, expect: int = 0, **variables: str) -> str:
    path = f"{Path(PYTHON).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "FAKECUDA": "numerics", "PATH": path, "OMP_NUM_THREADS": "1", **variables}
    environment["PYTHONPATH"] = os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(ROOT)])
    environment.pop("CUDA_DEVICE_MAX_CONNECTIONS", None)
    words = [PYTHON, *command] if command[0].endswith(".py") else command
    done = subprocess.run(words, cwd=home, capture_output=True, text=True, timeout=580, env=environment)
    assert done.returncode == expect, f"{shlex.join(words)}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def as_in_readme(name: str) -> list[str]:
    """A command of the README that starts two processes, copied."""
    lines = [line for line in readme_commands() if line.startswith(f"megatron-cod {name} --nproc 2")]
    return [PYTHON, "-m", "megatron_cod", *shlex.split(lines[0])[1:]]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A checkout in which the README's training command has run, and another run of a scheme that does not fold."""
    home = tmp_path_factory.mktemp("home")
    for name in ("recipes", "tools", "examples"):
        (home / name).symlink_to(ROOT / name)
    (home / "runs" / "quickstart").mkdir(parents=True)
    prepare_sample(home / "runs" / "quickstart" / "data")
    write_sample_conversations(home / "chats")
    output = execute([*as_in_readme("train"), *TOY], home)
    assert "backend: torch (Transformer Engine is not installed)" in output and "step 20/20 | loss" in output
    post = ["--norm-scheme", "post_ln", "--train-iters", "2", "--save-interval", "2", "--save", "runs/post"]
    execute([*as_in_readme("train"), *TOY, *post], home)
    execute(shlex.split("tools/convert_hf.py export --checkpoint runs/first --output hf/first"), home)
    return home


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_program_runs_on_a_gpu(home, name):
    command, expected = PROGRAMS[name]
    assert expected in execute(as_in_readme("evaluate") if name == "evaluate" else shlex.split(command), home)


@pytest.mark.slow
@pytest.mark.parametrize("gpus", [0, 1, 2])
def test_quick_start_finishes_with_any_number_of_gpus(gpus, tmp_path):
    for name in ("recipes", "tools", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    hidden = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(gpus)))}
    output = execute(["examples/quickstart.py", "--steps", "2", "--", *TOY], tmp_path, **hidden)
    log = (tmp_path / "runs" / "quickstart" / "lns" / "log.txt").read_text()
    assert ("no GPU found" in log) is (gpus < 2)
    assert ("2 processes and 1 GPU: NCCL takes one process a GPU. Training on 2 CPU processes" in output) is (gpus == 1)
    if gpus == 1:  # a layout that is asked for is not changed
        output = execute(
            ["examples/quickstart.py", "--steps", "2", "--pp", "2", "--fresh", "--", *TOY], tmp_path, 2, **hidden
        )
        assert "error: 2 processes were started on this machine, but torch sees 1 GPU" in output


@pytest.mark.slow
def test_fine_tuning_example_with_one_gpu(home):
    command = (
        f"examples/fine_tuning.py --base runs/first --epochs 1 -- {THIN} --sft-too-long truncate --global-batch-size 64"
    )
    output = execute(shlex.split(command), home, CUDA_VISIBLE_DEVICES="0")
    assert "2 processes and 1 GPU" in output and "loss per token of the 40 answers" in output


@pytest.mark.slow
def test_launch_compiles_or_logs_why_not(home):
    """Without a C compiler Triton builds nothing: the fused activations then run operation by operation."""
    tools = home / "bin"
    tools.mkdir()
    for name in ("true", "python", "env"):
        (tools / name).symlink_to(f"/usr/bin/{name}" if name != "python" else PYTHON)
    command = ["-m", "megatron_cod.training.pretrain", "--recipe", DEBUG, "--mock-data", "--train-iters", "1", *TOY]
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    environment = {**os.environ, **ranks, "FAKECUDA": "small", "PATH": str(tools), "CC": ""}
    environment["PYTHONPATH"] = os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(ROOT)])
    done = subprocess.run(
        [PYTHON, *command, "--eval-iters", "0", "--log-interval", "1"],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "fused activations: not compiled" in done.stdout and "step 1/1 | loss" in done.stdout


@pytest.mark.slow
def test_preflight_measures_over_nccl_where_only_torch_sees_gpus(home):
    output = home / "preflight.json"
    ranks = [
        {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"} for rank in (0, 1)
    ]
    command = [PYTHON, "tools/preflight.py", "--processes", "2", "--size-mib", "1", "--json", str(output)]
    environment = {**os.environ, "FAKECUDA": "numerics", "MASTER_ADDR": "127.0.0.1"}
    environment["PYTHONPATH"] = os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(ROOT)])
    processes = [
        subprocess.Popen(command, cwd=home, env=environment | one, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for one in ranks
    ]
    texts = [process.communicate(timeout=500)[0].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], texts[0][-3000:]
    found = json.loads(output.read_text())
    assert found["figures"]["bandwidth"]["all_reduce"][0]["ranks"] == 2
    assert "over nccl" in texts[0] and "8 GPUs by torch's count; there is no nvidia-smi" in texts[0]
