"""The pipeline plan: 1..L for every layout it accepts, as Megatron really builds it, and never a sound layout refused."""

from argparse import Namespace
from contextlib import contextmanager

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from megatron.core import parallel_state
from megatron.core.transformer import multi_token_prediction, transformer_layer
from megatron.core.transformer.transformer_block import get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_cod.pipeline import LayoutError, PipelineSplit, plan_pipeline, split_from_args

SETTINGS = settings(max_examples=1500, deadline=None, derandomize=True)


@contextmanager
def as_rank(rank: int, size: int, virtual: int | None):
    """Megatron's functions answer for the process that asks: be that process."""
    names = (
        "_MPU_PIPELINE_MODEL_PARALLEL_RANK",
        "_MPU_PIPELINE_MODEL_PARALLEL_WORLD_SIZE",
        "_VIRTUAL_PIPELINE_MODEL_PARALLEL_WORLD_SIZE",
    )
    before = [getattr(parallel_state, name) for name in names]
    for name, value in zip(names, (rank, size, virtual), strict=True):
        setattr(parallel_state, name, value)
    try:
        yield
    finally:
        for name, value in zip(names, before, strict=True):
            setattr(parallel_state, name, value)


def built_by_megatron(split: PipelineSplit) -> dict[tuple[int, int], list[int]]:
    """(virtual stage, stage) -> the layer numbers Megatron gives there; raises what Megatron raises."""
    config = TransformerConfig(
        num_layers=split.num_layers,
        hidden_size=8,
        num_attention_heads=1,
        pipeline_model_parallel_size=split.pipeline_size,
        virtual_pipeline_model_parallel_size=split.virtual_size if split.virtual_size > 1 else None,
        num_layers_in_first_pipeline_stage=split.first,
        num_layers_in_last_pipeline_stage=split.last,
        pipeline_model_parallel_layout=split.layout,
        account_for_embedding_in_pipeline_split=split.with_embedding,
        account_for_loss_in_pipeline_split=split.with_loss,
        mtp_num_layers=split.mtp_layers or None,
        pipeline_dtype=torch.float32,
    )
    virtual = config.virtual_pipeline_model_parallel_size or 1
    virtual = virtual if virtual > 1 else None
    config.virtual_pipeline_model_parallel_size = virtual
    numbers = {}
    for rank in range(split.pipeline_size):
        with as_rank(rank, split.pipeline_size, virtual):
            for stage in range(virtual or 1):
                asked = stage if virtual else None
                count = get_num_layers_to_build(config, asked, rank)
                offset = transformer_layer.get_transformer_layer_offset(config, asked, rank)
                numbers[stage, rank] = [offset + 1 + index for index in range(count)]
    return numbers


def in_order(numbers: dict[tuple[int, int], list[int]]) -> list[int]:
    return [number for key in sorted(numbers) for number in numbers[key]]


counts = st.one_of(st.none(), st.integers(1, 12))
dealt = st.builds(
    PipelineSplit,
    num_layers=st.integers(1, 48),
    pipeline_size=st.integers(1, 8),
    virtual_size=st.integers(1, 4),
    first=counts,
    last=counts,
    with_embedding=st.booleans(),
    with_loss=st.booleans(),
)


@st.composite
def divisible(draw):
    """Splits made so that they mostly fit: random ones seldom do."""
    pp, vp, chunk = draw(st.integers(1, 8)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    kind = draw(st.sampled_from(["even", "ends", "first", "last", "embedding and loss"]))
    if kind == "embedding and loss":
        embedding, loss = draw(st.booleans()), draw(st.booleans())
        layers = pp * vp * chunk - embedding - loss
        return PipelineSplit(max(layers, 1), pp, vp, with_embedding=embedding, with_loss=loss)
    first = vp * draw(st.integers(1, 3)) if kind in ("ends", "first") else None
    last = vp * draw(st.integers(1, 3)) if kind in ("ends", "last") else None
    middle = max(pp - (first is not None) - (last is not None), 0)
    return PipelineSplit(max((first or 0) + (last or 0) + middle * vp * chunk, 1), pp, vp, first, last)


@st.composite
def letters(draw):
    """Layout strings of stages with 0 to 3 layers, some with multi-token prediction, some with a mistake in them."""
    pp, vp, mtp = draw(st.integers(1, 8)), draw(st.integers(1, 4)), draw(st.integers(0, 2))
    stages = ["t" * draw(st.integers(0, 3)) for _ in range(pp * vp)]
    held = sum(map(len, stages))
    stages[0], stages[-1] = "E" + stages[0], stages[-1] + "m" * mtp + "L"
    claimed = held + draw(st.sampled_from([0] * 8 + [1]))
    return PipelineSplit(max(claimed, 1), pp, vp, layout="|".join(stages), mtp_layers=mtp)


@SETTINGS
@given(st.one_of(dealt, divisible(), letters()))
def test_the_plan_is_what_megatron_builds_and_exactly_1_to_L(split):
    """An accepted plan is 1..L, and Megatron agrees on every rank; a refused one Megatron refuses or builds wrongly."""
    try:
        plan = plan_pipeline(split)
    except LayoutError as error:
        event("refused")
        assert "\n" not in str(error)
        try:
            wrong = in_order(built_by_megatron(split)) != list(range(1, split.num_layers + 1))
        except (AssertionError, ValueError, ZeroDivisionError):
            wrong = True
        # With one stage, some numbers happen to fit (first count = L): there is nothing to split, so all are refused.
        assert wrong or split.pipeline_size == 1, error
        return
    event("accepted")
    assert [number for stage in plan for number in stage.layers] == list(range(1, split.num_layers + 1))
    ahead = [number for stage in plan for number in stage.mtp]
    assert ahead == list(range(split.num_layers + 1, split.num_layers + 1 + split.mtp_layers))
    assert [stage.embedding for stage in plan] == [True] + [False] * (len(plan) - 1)
    assert [stage.loss for stage in plan] == [False] * (len(plan) - 1) + [True]
    numbers = built_by_megatron(split)
    assert {(s.virtual_stage, s.pipeline_rank): list(s.layers) for s in plan} == numbers


def test_detects_offset_that_is_one_too_high(monkeypatch):
    """The mutant: the last stage's offset shifted by one."""
    original = transformer_layer.get_transformer_layer_offset
    shifted = lambda config, vp, rank: original(config, vp, rank) + (rank == 3)  # noqa: E731
    monkeypatch.setattr(transformer_layer, "get_transformer_layer_offset", shifted)
    split = PipelineSplit(8, 4)
    assert in_order(built_by_megatron(split)) != [n for stage in plan_pipeline(split) for n in stage.layers]


def test_multi_token_prediction_may_be_before_the_last_stage():
    plan = plan_pipeline(PipelineSplit(4, 4, layout="Ett|tt|m|L", mtp_layers=1))
    assert [stage.mtp for stage in plan] == [(), (), (5,), ()]
    assert multi_token_prediction.get_mtp_layer_offset.__name__  # Megatron numbers it 1: see test_mtp.py


def arguments(**given):
    defaults = dict.fromkeys(
        (
            "num_layers_per_virtual_pipeline_stage",
            "num_virtual_stages_per_pipeline_rank",
            "pipeline_model_parallel_layout",
            "decoder_first_pipeline_num_layers",
            "decoder_last_pipeline_num_layers",
            "mtp_num_layers",
        )
    )
    switches = {"account_for_embedding_in_pipeline_split": False, "account_for_loss_in_pipeline_split": False}
    return Namespace(**{**defaults, **switches, "num_layers": 8, "pipeline_model_parallel_size": 2, **given})


REFUSED = {
    "first and last at PP 1": (
        {"pipeline_model_parallel_size": 1, "decoder_first_pipeline_num_layers": 4},
        "--decoder-first-pipeline-num-layers and .* need --pipeline-model-parallel-size of at least 2",
    ),
    "virtual stages at PP 1": (
        {"pipeline_model_parallel_size": 1, "num_virtual_stages_per_pipeline_rank": 2},
        "2 virtual stages need --pipeline-model-parallel-size",
    ),
    "division by zero": (
        {
            "decoder_first_pipeline_num_layers": 4,
            "decoder_last_pipeline_num_layers": 4,
            "num_virtual_stages_per_pipeline_rank": 2,
        },
        "makes Megatron divide by zero",
    ),
    "letter": ({"pipeline_model_parallel_layout": "Ettttt|xtttL"}, "unknown letter 'x'; there are E"),
    "sum": ({"pipeline_model_parallel_layout": "Ettt|tttL"}, "holds 6 layers, but --num-layers is 8"),
    "stages": ({"pipeline_model_parallel_layout": "Et*4|t*2|t*2L"}, "has 3 stages, not a multiple of"),
    "two ways": (
        {"pipeline_model_parallel_layout": "Et*4|t*4L", "num_virtual_stages_per_pipeline_rank": 1},
        "both set how the pipeline is cut",
    ),
    "layout and counts": (
        {"pipeline_model_parallel_layout": "Et*4|t*4L", "decoder_first_pipeline_num_layers": 4},
        "gives the whole layout; remove",
    ),
    "even": ({"num_layers": 9}, "--num-layers 9 does not divide over --pipeline-model-parallel-size 2"),
    "chunks": ({"num_virtual_stages_per_pipeline_rank": 3}, "a stage's 4 layers do not divide over 3"),
    "chunk size": ({"num_layers_per_virtual_pipeline_stage": 3}, "8 layers do not divide over"),
    "no loss": ({"pipeline_model_parallel_layout": "Et*4|t*4"}, "last layer must be loss"),
    "mtp": ({"pipeline_model_parallel_layout": "Et*4|t*4mL"}, "holds 1 m, but --mtp-num-layers is 0"),
    "middle": (
        {"num_layers": 10, "pipeline_model_parallel_size": 4, "decoder_first_pipeline_num_layers": 3},
        "7 of --num-layers 10 are left for 3 stages",
    ),
}


@pytest.mark.parametrize(("given", "pattern"), REFUSED.values(), ids=REFUSED)
def test_refusals_name_the_flags(given, pattern):
    with pytest.raises(LayoutError, match=pattern):
        plan_pipeline(split_from_args(arguments(**given)))


def test_arguments_are_read_as_megatron_reads_them():
    plan = plan_pipeline(split_from_args(arguments(num_layers_per_virtual_pipeline_stage=2)))
    assert [(s.virtual_stage, s.pipeline_rank, s.layers) for s in plan] == [
        (0, 0, (1, 2)),
        (0, 1, (3, 4)),
        (1, 0, (5, 6)),
        (1, 1, (7, 8)),
    ]
