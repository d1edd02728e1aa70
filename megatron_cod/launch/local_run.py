"""Start a training run like torchrun does and print its progress lines, for tools that train several runs."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from megatron_cod.adaptations import cpu
from megatron_cod.launch.helper_processes import LAUNCHER

HIDDEN = {"CUDA_VISIBLE_DEVICES": ""}
"""The environment of processes that train on CPUs although there are GPUs."""
_PROGRESS = (
    *("step ", "validation at ", "validation: ", "test at ", "test: ", "depth map", "  pipeline stage", "error: "),
    *("parameters: ", "init policy "),
    *("training data: ", "validation data: ", "packed into ", "one conversation a row: "),
)


class RunFailed(RuntimeError):
    """A run ended with an error; its text is the run's own one-line error, or where its log is."""


def launch_alone() -> None:
    """Make this process the only rank of a job, as the launcher's environment would; for tools that start Megatron."""
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    # Nobody else joins, so any port will do: the kernel gives a free one. No launcher holds a store there.
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)


def launch_command(processes: int, flags: Sequence[str], entry: str = "pretrain") -> list[str]:
    """The torchrun command line of a single-node run. entry: a module of ``megatron_cod.training``."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [*torchrun, "-m", f"megatron_cod.training.{entry}", *flags]


def on_cpus_instead(processes: int) -> str | None:
    """Why so many processes of one machine cannot have a GPU each; None where they can, or where there is no GPU."""
    if not cpu.has_cuda() or torch.cuda.device_count() >= processes:
        return None
    gpus = torch.cuda.device_count()
    return f"{processes} processes and {gpus} GPU{'' if gpus == 1 else 's'}: NCCL takes one process a GPU"


def run_training(
    processes: int,
    flags: Sequence[str],
    log: Path,
    show: Callable[[str], None],
    entry: str = "pretrain",
    on_cpus: bool = False,
) -> None:
    """Train in ``processes`` processes to the end; the whole output goes to ``log``, progress lines to ``show``.

    on_cpus: hide the GPUs from them. Raises RunFailed when the run does not end well. On interruption the processes are
    ended with it.
    """
    environment = {"OMP_NUM_THREADS": "1", **os.environ} | (HIDDEN if on_cpus else {})
    _pass_on(launch_command(processes, flags, entry), environment, log, show)


def run_alone(flags: Sequence[str], log: Path, show: Callable[[str], None], threads: int, gpu: int | None) -> None:
    """Pretrain in one process, without torchrun: as ``run_training`` otherwise. gpu: the one that it may see, if any."""
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    own = {"OMP_NUM_THREADS": str(threads), LAUNCHER: str(os.getpid())}
    seen = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": str(gpu)}
    environment = {**os.environ, **ranks, **meeting, **own, **seen}
    environment.pop("TORCHELASTIC_USE_AGENT_STORE", None)
    _pass_on([sys.executable, "-m", "megatron_cod.training.pretrain", *flags], environment, log, show)


def _pass_on(command: Sequence[str], environment: dict[str, str], log: Path, show: Callable[[str], None]) -> None:
    error = None
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**environment, "PYTHONUNBUFFERED": "1"},
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                file.write(line)
                if line.startswith("error: "):
                    error = line.strip()
                if line.startswith(_PROGRESS):
                    show(line.rstrip())
            code = process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if code:
        raise RunFailed(error or f"the run ended with exit code {code}; its log is {log}")
