"""Random kills under the shipped script end in the losses of the undisturbed run; a few, and the campaign of 50."""

import pytest

from tests.launch.kill_campaign import run


@pytest.mark.parametrize(
    "kills",
    [
        pytest.param(4, marks=[pytest.mark.launch, pytest.mark.timeout(1200)]),
        pytest.param(50, marks=[pytest.mark.campaign, pytest.mark.timeout(6000)]),
    ],
)
def test_random_kills_change_nothing(tmp_path, kills):
    done, _ = run(tmp_path, kills, seed=kills, log=print)
    assert len(done) == kills
    assert sum(kill.in_save for kill in done) >= kills // 2
    assert {kill.rank for kill in done} == {0, 1}
