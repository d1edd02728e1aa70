"""SIGKILL of one rank in mid-run, under the real launcher: the others end within a minute, what was saved stays."""

import pytest

from tests.distributed.kills import kill_and_go_on


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.slow
def test_killing_a_rank_ends_the_run_and_loses_nothing(tiny, tmp_path, victim):
    kill_and_go_on(tiny, tmp_path / "run", victim)
