"""The depth map: gathered from every pipeline stage, checked, printed.

Megatron accepts some layouts that build the wrong layers, and a wrong index moves the loss by a part in a thousand:
so nothing trains before the stages of each pipeline replica hold exactly 1..L between them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.transformer.transformer_layer import BaseTransformerLayer

from megatron_cod import console
from megatron_cod.errors import UserError
from megatron_cod.schemes.depth import depth_factor, depth_scaled_modules, global_layer_number


class DepthMapError(UserError):
    """The stages of a pipeline do not hold exactly layers 1..L; its text names the stage at fault."""


@dataclass(frozen=True)
class StageLayers:
    """The transformer layers of one model chunk, in the order they run; those of multi-token prediction count on, L + k."""

    pipeline_rank: int
    virtual_stage: int
    layers: tuple[int, ...]
    """Global 1-based layer numbers."""
    factors: tuple[tuple[float | None, ...], ...]
    """Per layer, the factor of each depth-scaled norm; empty under a scheme without one."""

    @property
    def name(self) -> str:
        return f"pipeline stage {self.pipeline_rank}, virtual stage {self.virtual_stage}"


def stage_layers(chunk: torch.nn.Module, pipeline_rank: int, virtual_stage: int) -> StageLayers:
    """Read a built model chunk: its layer numbers and the factors its norms really carry."""
    layers = [module for module in chunk.modules() if isinstance(module, BaseTransformerLayer)]
    return StageLayers(
        pipeline_rank=pipeline_rank,
        virtual_stage=virtual_stage,
        layers=tuple(global_layer_number(layer) for layer in layers),
        factors=tuple(tuple(norm.depth_factor for norm in depth_scaled_modules(layer)) for layer in layers),
    )


def in_depth_order(stages: Sequence[StageLayers]) -> list[StageLayers]:
    """Chunks in the order a token passes them: virtual stage by virtual stage, each over the whole pipeline."""
    return sorted(stages, key=lambda stage: (stage.virtual_stage, stage.pipeline_rank))


FactorOf = Callable[[int], float | None]
"""Global layer number -> what the scheme multiplies there; None: no module of the layer may carry a factor."""


def check_depth_map(
    stages: Sequence[StageLayers], num_layers: int, mtp_layers: int = 0, factor_of: FactorOf = depth_factor
) -> None:
    """DepthMapError, naming the stage at fault, unless the chunks of one replica hold 1..num_layers once and in order.

    mtp_layers: multi-token-prediction layers, which must follow as num_layers + 1 and so on. Where a layer carries depth
    factors, each must be that of its global number (``factor_of``; 1/sqrt(l) for LNS).
    """
    expected, total = 1, num_layers + mtp_layers
    for stage in in_depth_order(stages):
        for number, factors in zip(stage.layers, stage.factors, strict=True):
            if number != expected:
                raise DepthMapError(
                    f"wrong global layer index: {stage.name} holds layer {number} where layer {expected} of "
                    f"{total} belongs (it holds {list(stage.layers)}); check the pipeline layout flags"
                )
            for factor in factors:
                right = factor_of(number)
                if factor != right:
                    expects = "no factor" if right is None else f"{right:.6f}"
                    raise DepthMapError(
                        f"wrong depth factor: {stage.name} scales layer {number} by {factor}, expected {expects}"
                    )
            expected += 1
    if expected != total + 1:
        more = f" and --mtp-num-layers {mtp_layers}" if mtp_layers else ""
        raise DepthMapError(
            f"the pipeline holds layers 1..{expected - 1}, but --num-layers is {num_layers}{more}; "
            f"{in_depth_order(stages)[-1].name} ends too early: check the pipeline layout flags"
        )


def format_depth_map(stages: Sequence[StageLayers]) -> str:
    """The depth map as lines of text: stage, layers, factors."""
    lines = ["depth map (global layer indices, proven over all pipeline stages):"]
    for stage in in_depth_order(stages):
        held = f"layers {stage.layers[0]}..{stage.layers[-1]}" if stage.layers else "no layers"
        factors = [group[0] for group in stage.factors if group and group[0] is not None]
        scale = f"norm factors {factors[0]:.4f}..{factors[-1]:.4f}" if factors else "norms unscaled"
        lines.append(f"  {stage.name}: {held}, {scale}")
    return "\n".join(lines)


def gather_depth_map(model: Sequence[torch.nn.Module]) -> list[StageLayers]:
    """Every chunk of this rank's pipeline replica. Collective over the pipeline group."""
    rank = parallel_state.get_pipeline_model_parallel_rank()
    mine = [stage_layers(chunk, rank, index) for index, chunk in enumerate(model)]
    group = parallel_state.get_pipeline_model_parallel_group()
    gathered: list[list[StageLayers] | None] = [None] * group.size()
    torch.distributed.all_gather_object(gathered, mine, group=group)
    return [stage for chunks in gathered if chunks for stage in chunks]


def _at(factor: Callable[[int, Any], float | None], config: Any, layer_number: int) -> float | None:
    return factor(layer_number, config)


def refuse_wrong_depth(
    model: list[torch.nn.Module], factor: Callable[[int, Any], float | None] | None = None
) -> list[torch.nn.Module]:
    """Megatron post-wrap hook: prove the depth map before anything trains. Collective over all ranks.

    factor: (global layer number, config) -> what the scheme multiplies there; None is LNS's 1/sqrt(l). Every rank raises
    the same DepthMapError when any replica is wrong, so none waits for another; rank 0 prints the map.
    """
    config: Any = next(module.config for module in model[0].modules() if hasattr(module, "config"))
    stages = gather_depth_map(model)
    fault = None
    try:
        factor_of = depth_factor if factor is None else partial(_at, factor, config)
        check_depth_map(stages, config.num_layers, config.mtp_num_layers or 0, factor_of)
    except DepthMapError as error:
        fault = str(error)
    # One number first: on GPUs a gathering of texts waits for the device several times.
    wrong = torch.full((1,), int(fault is not None), dtype=torch.int32, device=torch.cuda.current_device())
    torch.distributed.all_reduce(wrong, op=torch.distributed.ReduceOp.MAX)
    if int(wrong):
        faults: list[str | None] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(faults, fault)
        raise DepthMapError(next(text for text in faults if text))
    if torch.distributed.get_rank() == 0:
        console.print_line(format_depth_map(stages))
    return model
