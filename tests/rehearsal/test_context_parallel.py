"""The rehearsal of a context-parallel job: its plan, its depth map, ranks of it as planned."""

import pytest

from tests.rehearsal.jobs import SMALL, layout, planned, rehearsed

CP2 = ["--context-parallel-size", "2"]


def test_plan_has_context_parallel_size():
    one, two = planned([*SMALL, *layout(pp=2)], 2), planned([*SMALL, *layout(pp=2), *CP2], 8)
    assert two.sizes == {"TP": 1, "PP": 2, "VPP": 1, "CP": 2, "EP": 1, "DP": 2}
    assert two.tokens_per_step == one.tokens_per_step and two.microbatches == one.microbatches // 2
    for mine, theirs in zip(two.stages, one.stages, strict=True):
        assert [chunk.layers for chunk in mine.chunks] == [chunk.layers for chunk in theirs.chunks]
        held = [stage.chunks[0].activations for stage in (mine, theirs)]
        assert 0.5 * held[1] < held[0] < 0.7 * held[1]  # halved but for gathered keys and values


@pytest.mark.parametrize(("tp", "pp", "vp", "world", "rank"), [(1, 2, 1, 8, 7), (2, 2, 2, 8, 3)])
@pytest.mark.slow
def test_a_rank_is_as_planned(tp, pp, vp, world, rank):
    rehearsed([*SMALL, *layout(tp, pp, vp), *CP2], world, rank)


@pytest.mark.slow
def test_a_rank_of_the_first_stage_is_as_planned():
    rehearsed([*SMALL, *CP2], 2, 1)
