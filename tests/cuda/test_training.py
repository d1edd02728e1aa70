"""The emulated device trains what the CPU trains."""

import pytest

from tests.cuda.runs import DEBUG, train, train_on_cpu


@pytest.mark.parametrize("world", [1, 2])
def test_trains_and_computes_every_operation(world, tmp_path):
    run = train(world, tmp_path, *DEBUG).succeeded()
    assert len(run.losses) == 4 and run.losses[-1] < run.losses[0]
    for report in run.reports:
        assert sum(number for name, number in report.items() if name.startswith("kernel:")) > 1000
        assert not [name for name in report if name.startswith("!not computed")]


@pytest.mark.slow
def test_cpu_processes_train_beside_it():
    run = train_on_cpu(1, *DEBUG).succeeded()
    assert "no GPU found" in run.console and len(run.losses) == 4
