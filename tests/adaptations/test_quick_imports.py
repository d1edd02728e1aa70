"""A start on a CPU imports neither torch's compiler nor Weights & Biases, and both are there for who asks."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT


def said(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT), **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


START = "import sys, torch; given = torch.compile; import megatron_cod.training.run; "


@pytest.mark.slow
def test_the_compiler_and_wandb_are_not_imported():
    loaded = "print([name for name in ('torch._dynamo', 'torch._inductor', 'wandb') if name in sys.modules])"
    assert said(START + loaded) == "[]"
    assert "torch._dynamo" in said(START + loaded, TORCHDYNAMO_DISABLE="0")  # who asks for it compiles


@pytest.mark.slow
def test_torch_compile_is_torchs_own_afterwards():
    assert (
        said(START + "print(torch.compile is given, torch.compile(lambda x: x + 1)(torch.ones(1)).item())")
        == "True 2.0"
    )


def test_decorators_with_arguments_return_the_function():
    from megatron_cod.adaptations.quick_imports import as_it_is

    assert as_it_is(print) is print and as_it_is(dynamic=True)(print) is print


@pytest.mark.slow
def test_timers_write_to_wandb_where_it_is_asked_for():
    pytest.importorskip("wandb")
    code = """
from types import SimpleNamespace
from megatron.core import timers
from megatron_cod.training.monitoring.reporting import check_wandb
before = timers.wandb
check_wandb(SimpleNamespace(wandb_project='x'), 0, 1)
import wandb
print(before, timers.wandb is wandb)
"""
    assert said(START.rstrip("; ") + code) == "None True"
