"""The search: nothing faster is missed, what it prints is accepted and fits, and it is quick at 16,384 GPUs."""

import resource
import time

import pytest

from megatron_cod.errors import UserError
from megatron_cod.estimate.memory import stage_memory
from megatron_cod.pipeline import plan_pipeline, split_from_args
from megatron_cod.planner import suggest as search
from megatron_cod.planner.layouts import CHOSEN, Layout, changed_args, layouts, without_layout
from megatron_cod.planner.published_rows import PUBLISHED
from megatron_cod.planner.step import step_time
from megatron_cod.planner.suggest import MARGIN, SLACK, Bounds, peak_bytes, static_bytes, suggest
from megatron_cod.planner.suggest_report import format_suggestion
from megatron_cod.rehearsal.launch import read_launch
from tests.planner.runs import EXPERTS, H100, SEVEN, launched, some_layouts

BATCH = ("--global-batch-size", "16")
ROOM = H100.memory_gib * 2**30 * (1 - MARGIN)


@pytest.mark.slow
def test_no_layout_that_fits_is_faster_than_those_shown():
    """Against the whole model of every layout."""
    args = launched(*BATCH, world=8)
    found = suggest([*SEVEN, *BATCH], 8, H100)
    every = [(layout, changed_args(args, layout)) for layout in layouts(args, H100)]
    fitting = [(step_time(new, H100).seconds, layout) for layout, new in every if peak_bytes(new) <= ROOM]
    assert found.searched == len(every)
    assert [(one.step.seconds, one.layout) for one in found.best] == sorted(fitting)[:10]


def test_the_quick_bound_is_below_the_time():
    for flags in ((), EXPERTS):
        args = launched(*flags, *BATCH, world=16)
        bounds = Bounds(args, H100)
        for layout in some_layouts(args, 13):
            new = changed_args(args, layout)
            assert bounds.seconds(layout) <= SLACK * step_time(new, H100).seconds, layout
            assert static_bytes(new) <= peak_bytes(new), layout


def test_the_peak_is_that_of_all_stages_and_micro_batches():
    args = launched("--global-batch-size", "128")
    for layout in some_layouts(args, 31):
        new = changed_args(args, layout)
        chunks = plan_pipeline(split_from_args(new))
        stages = [[one for one in chunks if one.pipeline_rank == stage] for stage in range(layout.pipeline)]
        whole = max(stage_memory(new, stage, held)[1].total for stage, held in enumerate(stages))
        assert peak_bytes(new) == pytest.approx(whole), layout


@pytest.mark.parametrize("more", [(), tuple(EXPERTS)], ids=["dense", "experts"])
def test_arguments_of_a_layout_are_those_of_its_launch(more):
    """All that the model reads gives the same time and memory as Megatron's own validation of the flags."""
    args = launched(*more, *BATCH, world=16)
    stripped = without_layout([*more, *BATCH])
    for layout in some_layouts(args, 23 if not more else 149)[:5]:
        direct = launched(*stripped, *layout.flags(bool(more)), world=16)
        new = changed_args(args, layout)
        assert step_time(new, H100) == step_time(direct, H100), layout
        assert peak_bytes(new) == peak_bytes(direct), layout


def test_the_launch_without_its_layout_keeps_everything_else():
    line = [
        "--recipe",
        "a.yaml",
        "--recompute-modules",
        "core_attn",
        "mlp",
        "--lr",
        "1",
        "--sequence-parallel",
        "--bf16",
    ]
    line += ["--micro-batch-size=4", "--pipeline-model-parallel-size", "2", "--seed", "3"]
    assert without_layout(line) == ["--recipe", "a.yaml", "--lr", "1", "--bf16", "--seed", "3"]
    assert {flag for flag in Layout(2, 2, 2, 2, 2, 2, "full").flags(True) if flag.startswith("--")} <= set(CHOSEN)


def test_text_has_times_reasons_and_flags():
    found = suggest([*SEVEN, *BATCH], 8, H100, device=40 * 2**30)
    text = format_suggestion(found, H100)
    assert len(found.best) == 10
    assert any("slower" in loser.why for loser in found.losers)
    assert any("does not fit" in loser.why for loser in found.losers)
    assert "TP  PP  VPP  CP  EP" in text and "what would help the first one" in text
    flags = text.splitlines()[-1].split()
    assert read_launch([*SEVEN, *BATCH, *flags], 8).args.tensor_model_parallel_size == found.best[0].layout.tensor


def test_layouts_that_the_launch_refuses_are_not_shown(monkeypatch):
    """Megatron refuses what the enumeration lets pass: here everything without tensor parallelism."""
    real = search.read_launch

    def refusing(line, world, **kwargs):
        if "--tensor-model-parallel-size" in line and "--sequence-parallel" not in line:
            raise UserError("no")
        return real(line, world, **kwargs)

    monkeypatch.setattr(search, "read_launch", refusing)
    found = suggest([*SEVEN, *BATCH], 8, H100)
    assert all(one.layout.tensor > 1 for one in found.best)
    assert any(loser.why == "refused: no" for loser in found.losers)


def test_rejects_launch_that_fits_nowhere():
    with pytest.raises(UserError, match=r"no layout of 8 GPUs fits into 1 GiB; the nearest: does not fit"):
        suggest([*SEVEN, *BATCH], 8, H100, device=2**30)


def test_rejects_launch_that_is_refused_in_every_layout():
    with pytest.raises(UserError, match="--num-attention-heads 33"):
        suggest([*SEVEN, *BATCH, "--num-attention-heads", "33"], 8, H100)
    with pytest.raises(UserError, match="--pipeline-model-parallel-layout"):
        layout = ("--pipeline-model-parallel-size", "1", "--pipeline-model-parallel-layout", "E" + "t" * 32 + "L")
        suggest([*SEVEN, *BATCH, *layout], 8, H100)


@pytest.mark.slow
def test_16384_gpus_of_the_7b_are_searched_in_a_minute_and_2_gigabytes():
    started = time.process_time()
    assert suggest([*SEVEN, "--global-batch-size", "16384"], 16384, H100).best
    assert time.process_time() - started < 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2 * 2**20


@pytest.mark.slow
def test_16384_gpus_of_a_405b_are_searched_in_a_minute_and_2_gigabytes():
    row = next(row for row in PUBLISHED if "Meta" in row.model)
    started = time.process_time()
    assert suggest(row.words(), 16384, H100).best
    assert time.process_time() - started < 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2 * 2**20
