"""What the launch scripts decide before anything starts, with stand-ins for what they start."""

import subprocess
from pathlib import Path

import pytest

from megatron_cod.launch.scheduler import slurm_job
from tests.conftest import ROOT

ECHO = '#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n'


def program(place: Path, text: str = ECHO) -> Path:
    """A stand-in; by default it prints its words, a line each."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)
    place.chmod(0o755)
    return place


def bash(*words: str, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess:
    """Nothing of this environment but the system's programs."""
    variables = {"PATH": "/usr/bin:/bin", **variables}
    return subprocess.run(["bash", *words], cwd=cwd, env=variables, capture_output=True, text=True)


def environment(what: str, cwd: Path = ROOT, **variables: str) -> str:
    """What a command prints after a script has sourced ``environment.sh``."""
    done = bash("-euc", f". {ROOT}/examples/environment.sh; {what}", cwd=cwd, **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_python_of_make_is_found_in_a_fresh_shell(tmp_path):
    assert environment("echo $PYTHON", tmp_path) == "python"
    made = program(tmp_path / ".venv" / "bin" / "python")
    assert environment("echo $PYTHON", tmp_path) == str(made)
    assert environment("echo $PYTHON", tmp_path, PYTHON="python3") == "python3"


EIGHT = "".join(f"GPU {number}: NVIDIA H100 (UUID: GPU-{number}a-1)\n" for number in range(8))
INSTANCES = "GPU 0: NVIDIA A100 (UUID: GPU-0a)\n" + "".join(
    f"  MIG 1g.5gb Device {number}: (UUID: MIG-{number}b)\n" for number in range(7)
)
NO_DRIVER = "NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.\n"


@pytest.mark.parametrize(
    ("listed", "visible", "count"),
    [
        *((EIGHT, visible, count) for visible, count in ((None, 8), ("0,3", 2), ("5", 1), ("0,1,-1,2", 2), ("-1", 2))),
        *((EIGHT, visible, 2) for visible in ("", "none", "NoDevFiles", "9", "GPU-1a-1,GPU-2a", "0,1,9,2", "0,1,x,3")),
        (EIGHT, "GPU-7a-1", 1),
        (EIGHT, "GPU-1a-1,GPU-9", 1),
        (INSTANCES, None, 1),
        (INSTANCES, "MIG-3b", 1),
        (INSTANCES, "MIG-3b,MIG-4b", 1),
        (INSTANCES, "MIG-9", 2),
        (NO_DRIVER, None, 2),
        (NO_DRIVER, "0,1,2", 2),
        ("No devices were found\n", None, 2),
        ("", None, 2),
    ],
)
def test_processes_are_counted_by_the_gpus_that_are_visible(tmp_path, listed, visible, count):
    """None: two CPU processes."""
    (tmp_path / "listed").write_text(listed)
    program(tmp_path / "nvidia-smi", f"#!/bin/sh\ncat {tmp_path}/listed\n")
    told = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert environment("processes_here", PATH=f"{tmp_path}:/usr/bin:/bin", **told) == str(count)
    assert environment("processes_here", **told) == "2"  # no GPUs, whatever is left in the environment


def test_a_task_of_an_array_is_named_as_one():
    alone = {"SLURM_JOB_ID": "36"}
    task = {**alone, "SLURM_ARRAY_JOB_ID": "36", "SLURM_ARRAY_TASK_ID": "3"}
    assert environment("slurm_job", **alone) == slurm_job(alone) == "36"
    assert environment("slurm_job", **task) == slurm_job(task) == "36_3"
    assert slurm_job({}) is slurm_job({"SLURM_JOB_ID": ""}) is None


@pytest.mark.parametrize("lacks", ["SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"])
@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("job", [{}, {"SLURM_JOB_ID": "36"}])
def test_a_task_without_its_array_is_named_as_its_job(job, empty, lacks):
    """A script may set one of the two: a study's does, for a machine without Slurm."""
    told = {"SLURM_ARRAY_JOB_ID": "36", "SLURM_ARRAY_TASK_ID": "3", **job}
    told.pop(lacks)
    told |= {lacks: ""} if empty else {}
    assert slurm_job(told) == job.get("SLURM_JOB_ID")
    if job:  # the scripts run under Slurm alone
        assert environment("slurm_job", **told) == "36"


@pytest.mark.parametrize("lines", ["2031-01-01T10:00:00", "2031-01-01T10:00:00\\n2031-01-01T11:00:00", "Unknown", ""])
def test_the_end_of_a_job_is_one_line_of_squeue_or_none(tmp_path, lines):
    program(tmp_path / "squeue", f"#!/bin/sh\nprintf '{lines}\\n'\n")
    found = environment(
        "slurm_end; echo ${SLURM_JOB_END_TIME:-}", PATH=f"{tmp_path}:/usr/bin:/bin", SLURM_JOB_ID="7", TZ="UTC"
    )
    assert found == ("1925028000" if lines.startswith("2031") else "")


def test_docker_is_given_a_directory_and_no_name(tmp_path):
    program(tmp_path / "bin" / "docker")
    variables = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "RUNS": "my/runs"}
    done = bash(str(ROOT / "examples" / "docker" / "run.sh"), cwd=tmp_path, **variables)
    words = done.stdout.splitlines()
    assert words[words.index("--volume") + 1] == f"{tmp_path.resolve()}/my/runs:/workspace/runs"
    assert (tmp_path / "my" / "runs").is_dir()


def test_the_preflight_of_a_job_guesses_none_of_its_settings():
    done = bash("examples/preflight.sh", SLURM_JOB_ID="7", PYTHON="false")
    assert done.returncode and done.stderr.splitlines()[-1].endswith("RECIPE: as in the job")
    done = bash("examples/preflight.sh", SLURM_JOB_ID="7", PYTHON="false", RECIPE="x", DATA="y")
    assert done.returncode and done.stderr.splitlines()[-1].endswith("SAVE: as in the job")


class Array:
    """``preprocess.sbatch`` as a job array would run it, on five files."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.python = folder, str(program(folder / "python"))
        for number in range(5):
            (folder / f"f{number}").touch()

    def task(self, number: int, array: list[int], **variables: str) -> subprocess.CompletedProcess:
        told = {"ID": number, "COUNT": len(array), "MIN": min(array), "MAX": max(array)}
        slurm = {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in told.items()}
        given = {"INPUTS": f"{self.folder}/f*", "OUTPUT": "out", "PYTHON": self.python, "SLURM_SUBMIT_DIR": str(ROOT)}
        return bash("examples/slurm/preprocess.sbatch", **{**given, **slurm, **variables})

    def files(self, number: int, array: list[int], **variables: str) -> list[str]:
        done = self.task(number, array, **variables)
        assert done.returncode == 0, done.stderr
        return [Path(word).name for word in done.stdout.splitlines() if word.startswith(f"{self.folder}/f")]


@pytest.fixture
def array(tmp_path):
    return Array(tmp_path)


def test_array_reads_every_file_once(array):
    whole = [0, 1, 2]
    assert [array.files(number, whole) for number in whole] == [["f0", "f3"], ["f1", "f4"], ["f2"]]
    # What failed again, alone.
    assert array.files(1, [1], TASKS="3") == ["f1", "f4"]
    assert array.files(7, list(range(8))) == []  # more tasks than files


@pytest.mark.parametrize(("number", "tasks"), [(1, [1, 2, 3]), (1, [1]), (0, [0, 2, 4])])
def test_an_array_that_would_leave_files_out_or_take_some_twice_is_refused(array, number, tasks):
    done = array.task(number, tasks)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith("error: the array must be 0-N, without gaps") and done.stderr.count("\n") == 1


def test_a_task_beyond_the_whole_and_a_pattern_of_no_file_are_refused(array):
    done = array.task(3, [3], TASKS="3")
    assert (done.returncode, done.stderr) == (1, "error: task 3 is none of TASKS=3, which are 0 to 2\n")
    done = array.task(0, [0, 1], INPUTS="nowhere/*.json")
    assert (done.returncode, done.stderr) == (1, "error: no file matches nowhere/*.json\n")


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({"SLURM_JOB_ID": "36"}, "36"),
        ({"SLURM_JOB_ID": "36", "SLURM_ARRAY_JOB_ID": "36", "SLURM_ARRAY_TASK_ID": "3"}, "36_3"),
        ({"SLURM_JOB_ID": "37", "SLURM_ARRAY_JOB_ID": "36", "SLURM_ARRAY_TASK_ID": "0"}, "36_0"),
        ({"SLURM_JOB_ID": "36", "SLURM_ARRAY_JOB_ID": ""}, "36"),
    ],
)
def test_job_is_queried_by_its_own_name(tmp_path, variables, name):
    """And of several lines of squeue the first end counts; those without one do not."""
    squeue = 'case "$*" in *--jobs=NAME\\ *) printf "N/A\\n2031-01-01T10:00:00\\n2031-01-01T09:00:00\\n";; esac'
    program(tmp_path / "squeue", f"#!/usr/bin/env bash\n{squeue.replace('NAME', name)}\n")
    script = program(
        tmp_path / "job", "#!/usr/bin/env bash\n. examples/environment.sh; slurm_end; echo $SLURM_JOB_END_TIME\n"
    )
    done = bash(str(script), **variables, PATH=f"{tmp_path}:/usr/bin:/bin", TZ="UTC")
    assert done.stdout.strip().endswith("1925024400"), done.stderr


@pytest.mark.parametrize(
    ("ranks", "answer", "code", "queued"),
    [(1, 0, 1, True), (0, 0, 0, True), (0, 1, 0, False), (0, 2, 2, False), (9, 2, 9, False)],
    ids=["again", "again after a lost node", "done", "given up after a lost node", "given up"],
)
def test_a_job_that_is_given_up_is_no_success(tmp_path, ranks, answer, code, queued):
    """srun may return 0 when a node is lost."""
    log = (
        'case $* in "show hostnames"*) echo n1;; "show node"*) echo "A=1 NodeAddr=127.0.0.1 B=2";; *) echo "$@";; esac'
    )
    for name, what in {"srun": f"exit {ranks}", "scontrol": log, "squeue": "echo", "sleep": "true"}.items():
        program(tmp_path / name, f"#!/usr/bin/env bash\n{what}\n")
    python = program(tmp_path / "python", f"#!/usr/bin/env bash\nexit {answer}\n")
    variables = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "x", "SLURM_JOB_NODELIST": "n1"}
    variables |= {"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHON": str(python), "DATA": "d"}
    done = bash("examples/slurm/pretrain.sbatch", **variables)
    assert done.returncode == code, done.stderr
    assert ("requeue 7" in done.stdout) == queued
