"""The planner from end to end on this machine: preflight, machine file, prediction, and real steps of six layouts."""

import pytest

from tests.planner.cpu_runs import LAYOUTS, measured_runs, table


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_steps_of_cpu_processes_are_predicted(tmp_path):
    runs = measured_runs(tmp_path)
    assert [run.layout for run in runs] == list(LAYOUTS)
    assert max(abs(run.error) for run in runs) <= 0.25, f"is the machine quiet?\n{table(runs)}"
