"""Devices that do not fit a launch are refused in one line, before any rank waits for another."""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import pytest
import torch

from megatron_cod.adaptations import cpu
from megatron_cod.launch import devices
from megatron_cod.training.flags.parser import build_parser
from tests.conftest import ROOT
from tests.cuda.runs import DEBUG, train, train_on_cpu
from tests.distributed.launch import run_ranks
from tests.ports import free_port


def _as(variables: dict[str, str]) -> None:
    """Another machine: the emulated runtime reads these when it is first asked."""
    os.environ.update(variables)


def machine(**variables: str) -> Callable[[], None]:
    return partial(_as, {f"FAKECUDA_{name.upper()}": value for name, value in variables.items()})


def test_rejects_more_processes_than_gpus(tmp_path):
    run = train(2, tmp_path, *DEBUG, before=machine(devices="1"), timeout=60)
    assert run.code == 2 and not run.losses
    assert "2 processes were started on this machine, but torch sees 1 GPU: start at most 1" in run.error


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (
            {"driver": "12040"},
            ("cannot use this machine's GPUs", "too old (found version 12040)", "CUDA_VISIBLE_DEVICES="),
        ),
        ({"capability": "61"}, ("has no kernels for the", "(sm_61)", "sm_75")),
    ],
    ids=["driver", "generation"],
)
def test_rejects_gpus_that_torch_cannot_use(variables, words, tmp_path):
    assert train(1, tmp_path, *DEBUG, before=machine(**variables)).refused(*words)


def _old_driver_that_torch_asks() -> None:
    machine(driver="12040")()
    os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK")
    os.environ["CUDA_VISIBLE_DEVICES"] = "0,1"  # as Slurm sets it: nothing is hidden


@pytest.mark.slow
def test_rejects_a_driver_that_is_too_old_where_torch_asks_the_driver(tmp_path):
    """Without PYTORCH_NVML_BASED_CUDA_CHECK torch then finds no GPU at all; nobody is to train on CPUs without knowing."""
    run = train(1, tmp_path, *DEBUG, before=_old_driver_that_torch_asks)
    assert run.refused("cannot use this machine's GPUs", "too old"), run.console[-3000:]


@pytest.mark.slow
def test_reports_hidden_gpus():
    """In a process of its own: what Megatron compiles is decided when it is imported."""
    place = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port(23000)),
    }
    command = [sys.executable, "-m", "megatron_cod.training.pretrain", *DEBUG, "--train-iters", "1"]
    hidden = os.environ | place | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=hidden, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "no GPU found, with CUDA_VISIBLE_DEVICES=: training on CPU processes over gloo" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        ["--cuda-graph-impl", "local"],
        pytest.param(["--log-device-memory-used"], marks=pytest.mark.slow),
        pytest.param(["--record-memory-history"], marks=pytest.mark.slow),
        pytest.param(["--distributed-backend", "nccl"], marks=pytest.mark.slow),
    ],
    ids=lambda flags: flags[0],
)
def test_rejects_gpu_flags_without_gpu(flags):
    assert train_on_cpu(1, *DEBUG, *flags).refused(flags[0], "needs a GPU")


@pytest.mark.parametrize(
    ("flags", "generation", "expected"),
    [
        (["--tensor-model-parallel-size", "2"], 9, "1"),
        (["--context-parallel-size", "2"], 8, "1"),
        (["--tensor-model-parallel-size", "2"], 10, None),
        (["--tensor-model-parallel-size", "2", "--use-torch-fsdp2"], 9, None),
        (["--tensor-model-parallel-size", "2", "--use-megatron-fsdp"], 9, None),
        (["--pipeline-model-parallel-size", "2"], 9, None),
    ],
)
def test_sets_the_connections_that_megatron_asks_for(flags, generation, expected, monkeypatch):
    monkeypatch.delenv("CUDA_DEVICE_MAX_CONNECTIONS", raising=False)
    monkeypatch.setattr(cpu, "has_cuda", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (generation, 0))
    args = build_parser().parse_args(flags)
    devices.set_connections(args)
    assert os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS") == expected
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "8")
    devices.set_connections(args)
    assert os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] == "8"  # the user's wins


def _plain_shell() -> None:
    os.environ.pop("CUDA_DEVICE_MAX_CONNECTIONS", None)


@pytest.mark.slow
def test_tensor_parallelism_trains_in_a_plain_shell(tmp_path):
    flags = ["--tensor-model-parallel-size", "2", "--sequence-parallel", "--train-iters", "2"]
    assert len(train(2, tmp_path, *DEBUG, *flags, before=_plain_shell).succeeded().losses) == 2


@pytest.mark.parametrize("flag", ["--use-megatron-fsdp", "--log-device-memory-used"])
def test_rejects_flags_whose_package_is_missing(flag, tmp_path, monkeypatch):
    from megatron_cod.training.flags import packages

    missing = {"--use-megatron-fsdp": "einops", "--log-device-memory-used": "nvidia-ml-py"}[flag]
    monkeypatch.setattr(packages.Package, "is_installed", lambda self: self.name != missing)
    assert train(1, tmp_path, *DEBUG, flag).refused(flag, f"{missing} is not installed (pip install {missing})")


def _device(rank: int, name: str | None) -> str:
    try:
        return str(devices.device_named(name))
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        (None, "cuda"),
        ("cpu", "cpu"),
        ("cuda:1", "cuda:1"),
        ("cuda:77", "--device cuda:77: torch sees"),
        ("gpu", "--device gpu: there are cpu, cuda and cuda:N"),
    ],
)
def test_tools_accept_a_device(name, found):
    assert run_ranks(1, _device, name)[0].startswith(found)


@pytest.mark.parametrize(
    ("capability", "architectures", "expected"),
    [
        ((9, 0), ["sm_80", "sm_90"], True),
        ((8, 9), ["sm_80", "sm_90"], True),
        ((8, 0), ["sm_86"], False),
        ((10, 3), ["sm_90"], False),
        ((10, 3), ["sm_90", "compute_90"], True),
        ((12, 0), ["sm_100", "sm_120"], True),
        ((9, 0), ["sm_90a"], True),
        ((6, 1), ["sm_75", "compute_75"], False),
    ],
)
def test_rejects_kernels_of_another_generation(capability, architectures, expected):
    assert devices.runs_on(capability, architectures) is expected
