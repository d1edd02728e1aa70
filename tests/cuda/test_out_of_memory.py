"""A device that is out of memory ends a run with one line: what holds the memory, what would help, which rank."""

import os
import re
from functools import partial

import pytest

from tests.cuda.runs import DEBUG, Run, train

WIDE = (*DEBUG, "--hidden-size", "512", "--ffn-hidden-size", "1376", "--num-attention-heads", "8", "--num-layers", "6")
"""Weights of 75 MiB, and as much of gradients; twice that of optimizer states."""
LARGE_BATCH = ("--micro-batch-size", "64", "--global-batch-size", "128")


def _left(mib: int) -> None:
    """All but so much of a device of 1 GiB is taken already."""
    import torch

    os.environ["FAKECUDA_GIB"] = "1"
    torch.taken = torch.empty((1024 - mib) << 20, dtype=torch.uint8, device="cuda")


def _second_step_is_too_large() -> None:
    """From the second step on a forward step keeps a tensor more than the device has."""
    import torch

    from megatron_cod.training.loop import step_hooks

    os.environ["FAKECUDA_GIB"] = "4"
    watch = step_hooks.Steps.watch

    def too_large(self, step):
        def forward_step(*rest):
            if self._args.curr_iteration == 1 and os.environ["RANK"] == "1":
                torch.empty(5 << 30, dtype=torch.uint8, device="cuda")
            return step(*rest)

        return watch(self, forward_step)

    step_hooks.Steps.watch = too_large


def _loading_is_too_large() -> None:
    import torch
    from megatron.training import checkpointing

    def load_base_checkpoint(*_, **__):
        torch.empty(100 << 30, dtype=torch.uint8, device="cuda")

    checkpointing._load_base_checkpoint = load_base_checkpoint


def _cublas_has_none() -> None:
    import torch

    def rms_norm(*_, **__):
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")

    torch.nn.functional.rms_norm = rms_norm


def one_line(run: Run) -> str:
    """The error, which is the only one and has no traceback; every rank ended."""
    lines = [line for line in run.console.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in run.console, run.console[-4000:]
    reported = [rank.code for rank in run.ranks if "error: " in rank.output]
    assert reported == [2] and all(rank.code for rank in run.ranks)  # the others are ended
    return lines[0]


def holders(line: str) -> list[str]:
    found = re.search(r"estimated for this rank: [\d.]+ GiB, most of it (.*?); what would help: (.+)", line)
    assert found, line
    sizes = re.findall(r"([a-z' ]+?) ([\d.]+) GiB", found[1])
    assert [float(size) for _, size in sizes] == sorted((float(size) for _, size in sizes), reverse=True)
    return [name.strip() for name, _ in sizes]


def test_set_up_without_memory_ends_in_one_line(tmp_path):
    run = train(1, tmp_path, *WIDE, "--micro-batch-size", "1", before=partial(_left, 90))
    line = one_line(run)
    place = r"error: rank 0 on \S+: the device is out of memory in set-up"
    assert re.match(place + r" \(1\.0 GiB, [\d.]+ MiB more were asked for\)", line), line
    assert holders(line) == ["optimizer", "weights", "gradients"] and not run.losses
    assert "--tensor-model-parallel-size above 1" in line


@pytest.mark.slow
def test_traceback_is_in_the_log_of_the_rank(tmp_path):
    """In the first step; with ``--save`` ranks have logs."""
    run = train(1, tmp_path, *WIDE, *LARGE_BATCH, "--save", str(tmp_path / "run"), before=partial(_left, 240))
    line = one_line(run)
    assert "out of memory in step 1 " in line and holders(line)[0] == "activations", line
    assert "a --micro-batch-size below 64; --recompute-granularity full" in line
    log = (tmp_path / "run" / "logs" / "rank_00000.log").read_text()
    assert "Traceback" in log and "OutOfMemoryError" in log


@pytest.mark.slow
def test_rank_without_memory_ends_the_others(tmp_path):
    run = train(2, tmp_path, *DEBUG, before=_second_step_is_too_large)
    assert re.match(
        r"error: rank 1 on \S+: the device is out of memory in step 2 \(4\.0 GiB, 5\.00 GiB more", one_line(run)
    )
    assert "--use-distributed-optimizer" in one_line(run)


@pytest.mark.slow
def test_loading_without_memory_ends_in_one_line(tmp_path):
    folder = str(tmp_path / "run")
    train(1, tmp_path, *DEBUG, "--save", folder, "--save-interval", "2", "--rank-log-dir", "none").succeeded()
    again = (*DEBUG, "--load", folder, "--train-iters", "6", "--override-opt_param-scheduler")
    assert "out of memory while the checkpoint is loaded" in one_line(
        train(1, tmp_path, *again, before=_loading_is_too_large)
    )


@pytest.mark.slow
def test_names_libraries_without_memory(tmp_path):
    assert "out of memory in step 1" in one_line(train(1, tmp_path, *DEBUG, before=_cublas_has_none))
