"""A device that is out of memory ends a run with one line: what holds the memory, what would help, which rank."""

import os
import re

import pytest

from tests.cuda import runs
from tests.cuda.runs import Run, train

DEBUG = (*runs.DEBUG, "--no-rope-fusion")

WIDE = ("--hidden-size", "512", "--ffn-hidden-size", "1376", "--num-attention-heads", "8", "--num-layers", "2")
SET_UP = (*DEBUG, "--hidden-size", "4096", "--ffn-hidden-size", "11008", "--num-attention-heads", "32")
"""0.8 billion parameters: their gradients alone are 3 GiB."""
FIRST_STEP = (*DEBUG, *WIDE, "--micro-batch-size", "512", "--global-batch-size", "1024", "--vocab-size", "4000")
FIRST_STEP = (*FIRST_STEP, "--padded-vocab-size", "4096")


def _small(gib: str = "1", light: bool = True) -> None:
    os.environ["FAKECUDA_GIB"] = gib
    if light:
        os.environ["FAKECUDA_LIGHT"] = "1"


def _second_step_is_too_large() -> None:
    """From the second step on a forward step keeps a tensor more than the device has."""
    import torch

    from megatron_cod.training import steps

    _small("4", light=False)
    watch = steps.Steps.watch

    def too_large(self, step):
        def forward_step(*rest):
            if self._args.curr_iteration == 1 and os.environ["RANK"] == "1":
                torch.empty(5 << 30, dtype=torch.uint8, device="cuda")
            return step(*rest)

        return watch(self, forward_step)

    steps.Steps.watch = too_large


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
    assert run.code == 2 and all(rank.code for rank in run.ranks)
    return lines[0]


def holders(line: str) -> list[str]:
    found = re.search(r"estimated for this rank: [\d.]+ GiB, most of it (.*?); what would help: (.+)", line)
    assert found, line
    sizes = re.findall(r"([a-z' ]+?) ([\d.]+) GiB", found[1])
    assert [float(size) for _, size in sizes] == sorted((float(size) for _, size in sizes), reverse=True)
    return [name.strip() for name, _ in sizes]


def test_in_set_up(tmp_path):
    run = train(1, tmp_path, *SET_UP, mode="small", before=_small)
    line = one_line(run)
    assert re.match(
        r"error: rank 0 on \S+: the device is out of memory in set-up \(1\.0 GiB, [\d.]+ \w+ more were asked", line
    )
    assert holders(line)[0] == "optimizer" and "--tensor-model-parallel-size above 1" in line
    assert not run.losses


def test_traceback_is_in_the_log_of_the_rank(tmp_path):
    """In the first step; with ``--save`` ranks have logs."""
    run = train(1, tmp_path, *FIRST_STEP, "--save", str(tmp_path / "run"), mode="small", before=_small)
    line = one_line(run)
    assert "out of memory in step 1 " in line and holders(line)[0] == "activations"
    assert "a --micro-batch-size below 512; --recompute-granularity full" in line
    log = (tmp_path / "run" / "logs" / "rank_00000.log").read_text()
    assert "Traceback" in log and "OutOfMemoryError" in log


@pytest.mark.slow
def test_later_on_one_rank_ends_the_others(tmp_path):
    run = train(2, tmp_path, *DEBUG, before=_second_step_is_too_large)
    assert re.match(
        r"error: rank 1 on \S+: the device is out of memory in step 2 \(4\.0 GiB, 5\.00 GiB more", one_line(run)
    )
    assert "--use-distributed-optimizer" in one_line(run)


@pytest.mark.slow
def test_while_a_checkpoint_is_loaded(tmp_path):
    folder = str(tmp_path / "run")
    train(1, tmp_path, *DEBUG, "--save", folder, "--save-interval", "2", "--rank-log-dir", "none").succeeded()
    again = (*DEBUG, "--load", folder, "--train-iters", "6")
    assert "out of memory while the checkpoint is loaded" in one_line(
        train(1, tmp_path, *again, before=_loading_is_too_large)
    )


@pytest.mark.slow
def test_libraries_that_have_no_memory(tmp_path):
    assert "out of memory in step 1" in one_line(train(1, tmp_path, *DEBUG, before=_cublas_has_none))
