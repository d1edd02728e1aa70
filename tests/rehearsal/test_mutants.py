"""Wrong offsets put into the process that is rehearsed: each must be reported, and name its stage."""

import importlib
from functools import partial
from typing import Any

import pytest

from megatron_cod.rehearsal.compare import Mismatch
from tests.rehearsal.jobs import SMALL, layout, rehearsed

# Every module that took the function in by name.
LOOKED_UP = ("transformer.transformer_block", "transformer.transformer_layer", "models.gpt.gpt_layer_specs")


def replace_offset(stage: int, other: int | None) -> None:
    """Stage ``stage`` starts where ``other`` does, and the other way round; with None it starts at layer 1."""
    from megatron.core import parallel_state
    from megatron.core.transformer import transformer_layer

    original = transformer_layer.get_transformer_layer_offset

    def offset(config, vp_stage=None, pp_rank=None):
        rank = parallel_state.get_pipeline_model_parallel_rank() if pp_rank is None else pp_rank
        if other is None:
            return 0 if rank == stage else original(config, vp_stage, rank)
        return original(config, vp_stage, {stage: other, other: stage}.get(rank, rank))

    for name in LOOKED_UP:
        module: Any = importlib.import_module(f"megatron.core.{name}")
        assert hasattr(module, "get_transformer_layer_offset")
        module.get_transformer_layer_offset = offset


FOUR = [*SMALL, *layout(pp=4)]
INTERLEAVED = [*SMALL, *layout(pp=2, vp=2), "--global-batch-size", "8"]


@pytest.mark.parametrize(
    ("flags", "world", "rank", "stages", "error"),
    [
        (FOUR, 4, 2, (2, None), "pipeline stage 2, virtual stage 0: layers 1..2 were built, the plan has layers 5..6"),
        (FOUR, 4, 1, (1, 2), "pipeline stage 1, virtual stage 0: layers 5..6 were built, the plan has layers 3..4"),
        (FOUR, 4, 2, (1, 2), "pipeline stage 2, virtual stage 0: layers 3..4 were built, the plan has layers 5..6"),
        (INTERLEAVED, 2, 1, (1, None), "pipeline stage 1, virtual stage 0: layers 1..2 were built"),
    ],
    ids=["lost offset", "swapped, first", "swapped, second", "virtual stages"],
)
def test_wrong_offset_names_its_stage(flags, world, rank, stages, error):
    with pytest.raises(Mismatch, match=error):
        rehearsed(flags, world, rank, partial(replace_offset, *stages))


@pytest.mark.slow
def test_the_other_stages_are_as_planned():
    """The control: the same mutant, on a stage that it leaves alone."""
    rehearsed(FOUR, 4, 3, partial(replace_offset, 1, 2))


def factor_of_the_attention_norm_only() -> None:
    from megatron_cod.schemes.depth import depth_scaled_modules
    from megatron_cod.schemes.design import BlockDesign

    bind = BlockDesign.bind

    def half(self, layer):
        bind(self, layer)
        depth_scaled_modules(layer)[1].depth_factor = 1.0

    BlockDesign.bind = half


def test_a_wrong_factor_is_reported():
    with pytest.raises(Mismatch, match="stage 1, virtual stage 0: the norms of layer 3 carry the factors"):
        rehearsed(FOUR, 4, 1, factor_of_the_attention_norm_only)


def with_a_stray_parameter() -> None:
    import torch

    from megatron_cod.schemes.design import SchemeTransformerLayer

    init = SchemeTransformerLayer.__init__

    def more(self, *args, **kwargs):
        init(self, *args, **kwargs)
        self.stray = torch.nn.Parameter(torch.zeros(1))

    SchemeTransformerLayer.__init__ = more


def test_one_parameter_too_many_is_reported():
    with pytest.raises(Mismatch, match=r"stage 1, virtual stage 0: [\d,]+ parameters were built, the plan counts"):
        rehearsed(FOUR, 4, 1, with_a_stray_parameter)
