"""What a rank built, compared with the plan."""

from collections.abc import Sequence

from megatron_cod.estimate.ranks import Place
from megatron_cod.rehearsal.plan import ChunkRow, Plan
from megatron_cod.rehearsal.worker import BuiltChunk, RankReport


class Mismatch(Exception):
    """A rank was built otherwise than planned; its text is one line that names the stage."""


def _numbers(numbers: Sequence[int]) -> str:
    """Layer numbers, short where they follow one another."""
    held = list(numbers)
    if len(held) > 1 and held == list(range(held[0], held[-1] + 1)):
        return f"layers {held[0]}..{held[-1]}"
    return f"layers {', '.join(map(str, held))}" if held else "no layers"


def compare(plan: Plan, place: Place, report: RankReport, steps: int) -> None:
    """Mismatch unless the rank is at ``place``, holds exactly what the plan has, and took its steps."""
    name = f"pipeline stage {place.pipeline}"
    built = (report.pipeline_rank, report.tensor_rank, report.data_rank)
    if built != (place.pipeline, place.tensor, place.data):
        raise Mismatch(
            f"{name}: rank {report.rank} was built as pipeline, tensor, data rank {built}, "
            f"the plan puts it at {(place.pipeline, place.tensor, place.data)}"
        )
    stage = plan.stages[place.pipeline]
    if len(report.chunks) != len(stage.chunks):
        raise Mismatch(f"{name}: {len(report.chunks)} virtual stages were built, the plan has {len(stage.chunks)}")
    for planned, chunk in zip(stage.chunks, report.chunks, strict=True):
        where = f"{name}, virtual stage {planned.virtual_stage}"
        if tuple(chunk.layers) != planned.layers:
            raise Mismatch(f"{where}: {_numbers(chunk.layers)} were built, the plan has {_numbers(planned.layers)}")
        _compare_factors(where, planned, chunk)
        if (chunk.embedding, chunk.loss) != (planned.embedding, planned.loss):
            raise Mismatch(
                f"{where}: built with embedding {chunk.embedding} and loss {chunk.loss}, "
                f"the plan says {planned.embedding} and {planned.loss}"
            )
        if chunk.parameters != planned.parameters:
            raise Mismatch(
                f"{where}: {chunk.parameters:,} parameters were built, the plan counts {planned.parameters:,}"
            )
    if report.steps != steps:
        raise Mismatch(f"{name}: {report.steps} steps were taken of {steps}")


def _compare_factors(where: str, planned: ChunkRow, chunk: BuiltChunk) -> None:
    """As many modules of every layer carry its factor as the scheme has: both input norms, or others, or none."""
    for index, (number, built) in enumerate(zip(planned.layers, chunk.factors, strict=True)):
        expected = [planned.factors[index]] * planned.carriers if planned.factors else []
        if built != expected:
            raise Mismatch(f"{where}: the norms of layer {number} carry the factors {built}, the plan has {expected}")
