"""The plan of a job: who holds which layers, how much of everything, how long stages wait. Arithmetic only."""

import math
from dataclasses import dataclass

from megatron_cod.args import MegatronArgs
from megatron_cod.errors import UserError
from megatron_cod.estimate.activations import chunk_activations
from megatron_cod.estimate.memory import Memory, stage_memory
from megatron_cod.estimate.parameters import chunk_count, model_count, uncounted_features
from megatron_cod.estimate.schedule import bubble_ratio, bubble_share
from megatron_cod.estimate.shape import microbatches
from megatron_cod.pipeline import StagePlan, plan_pipeline, split_from_args
from megatron_cod.rehearsal.launch import Launch
from megatron_cod.schemes.design import BlockDesign, design_from_args
from megatron_cod.training.flags.batch_sizes import planned


class NotPlanned(UserError):
    """The launch would start; what it has on a rank is not counted here yet."""


@dataclass(frozen=True)
class ChunkRow:
    """One virtual stage of a pipeline stage."""

    virtual_stage: int
    layers: tuple[int, ...]
    """Global 1-based numbers; those of multi-token prediction follow as L + k."""
    factors: tuple[float, ...]
    """The depth factor of each layer; empty under a scheme without one."""
    carriers: int
    """How many modules of a layer carry it."""
    embedding: bool
    loss: bool
    parameters: int
    """On each rank of the stage."""
    activations: float
    """Bytes that one micro-batch holds here until its backward pass."""


@dataclass(frozen=True)
class StageRow:
    """One pipeline stage; its ranks differ in nothing that counts here."""

    stage: int
    chunks: tuple[ChunkRow, ...]
    parameters: int
    in_flight: int
    """The most micro-batch passes, over all virtual stages, that wait for their backward pass."""
    memory: Memory

    @property
    def layers(self) -> int:
        return sum(len(chunk.layers) for chunk in self.chunks)


@dataclass(frozen=True)
class Plan:
    """A job as its arguments ask for it. Counts of parameters are exact, activations an estimate."""

    world_size: int
    sizes: dict[str, int]
    """TP, PP, VPP, CP, EP, DP."""
    scheme: str
    num_layers: int
    stages: tuple[StageRow, ...]
    parameters: int
    """Of the model, each weight once."""
    microbatches: int
    micro_batch_size: int
    global_batch_size: int
    seq_length: int
    tokens_per_step: int
    steps: int | None
    tokens: int | None
    bubble_ratio: float
    bubble_share: float
    notes: tuple[str, ...]


def _factors(args: MegatronArgs, design: BlockDesign, numbers: tuple[int, ...]) -> tuple[float, ...]:
    """Of each layer; empty under a scheme without one."""
    found = [design.factor(number, args) for number in numbers] if design.carriers else []
    return tuple(factor for factor in found if factor is not None)


def _chunk(args: MegatronArgs, chunk: StagePlan, design: BlockDesign) -> ChunkRow:
    numbers = chunk.layers + chunk.mtp
    count = chunk_count(args, chunk)
    return ChunkRow(
        virtual_stage=chunk.virtual_stage,
        layers=numbers,
        factors=_factors(args, design, numbers),
        carriers=design.carriers,
        embedding=chunk.embedding,
        loss=chunk.loss,
        parameters=count.dense_on_rank(args) + count.experts_on_rank(args),
        activations=chunk_activations(args, chunk)[0],
    )


def _stage(args: MegatronArgs, stage: int, chunks: list[StagePlan]) -> StageRow:
    design = design_from_args(args)
    rows = tuple(_chunk(args, chunk, design) for chunk in chunks)
    in_flight, memory = stage_memory(args, stage, chunks)
    return StageRow(stage, rows, sum(row.parameters for row in rows), in_flight, memory)


def _length(args: MegatronArgs, tokens: int | None, tokens_per_step: int) -> tuple[int | None, int | None]:
    """(steps, tokens) of the run: for a token budget, or by the arguments."""
    if tokens is not None:
        steps = math.ceil(tokens / tokens_per_step)
        return steps, steps * tokens_per_step
    if not (args.train_iters or args.train_samples):
        return None, None
    steps, samples = planned(args)
    return steps, samples * args.seq_length


def _notes(args: MegatronArgs, stages: list[StageRow]) -> list[str]:
    notes = []
    held = [stage.layers for stage in stages]
    if max(held) != min(held):
        mean = sum(held) / len(held)
        notes.append(
            f"uneven: stages hold {min(held)} to {max(held)} layers (mean {mean:.2f}); the bubble is of even ones"
        )
    if args.step_batch_size_schedule:
        notes.append("the batch grows: micro-batches, tokens of a step and bubble are of its full size")
    if args.optimizer not in ("adam", "sgd"):
        notes.append(f"--optimizer {args.optimizer}: its states are counted like Adam's")
    sharded = [
        name for name in ("use_megatron_fsdp", "use_torch_fsdp2", "optimizer_cpu_offload") if getattr(args, name, 0)
    ]
    if sharded:
        notes.append(f"--{sharded[0].replace('_', '-')} is not in the memory estimate: less is needed than it says")
    return notes


def make_plan(launch: Launch, tokens: int | None = None) -> Plan:
    """The plan of a launch. tokens: a budget that decides the number of steps instead of the arguments.

    NotPlanned for an architecture whose parameters are not counted.
    """
    args = launch.args
    uncounted = uncounted_features(args)
    if uncounted:
        raise NotPlanned(f"the rehearsal cannot count {', '.join(uncounted)} yet")
    chunks = plan_pipeline(split_from_args(args))
    virtual = max(chunk.virtual_stage for chunk in chunks) + 1
    pp, count = args.pipeline_model_parallel_size, microbatches(args)
    stages = [_stage(args, stage, [chunk for chunk in chunks if chunk.pipeline_rank == stage]) for stage in range(pp)]
    tokens_per_step = args.global_batch_size * args.seq_length
    steps, tokens = _length(args, tokens, tokens_per_step)
    return Plan(
        world_size=launch.world_size,
        sizes={
            "TP": args.tensor_model_parallel_size,
            "PP": pp,
            "VPP": virtual,
            "CP": args.context_parallel_size,
            "EP": args.expert_model_parallel_size,
            "DP": args.data_parallel_size,
        },
        scheme=args.norm_scheme,
        num_layers=args.num_layers,
        stages=tuple(stages),
        parameters=model_count(args).total,
        microbatches=count,
        micro_batch_size=args.micro_batch_size,
        global_batch_size=args.global_batch_size,
        seq_length=args.seq_length,
        tokens_per_step=tokens_per_step,
        steps=steps,
        tokens=tokens,
        bubble_ratio=bubble_ratio(pp, virtual, count),
        bubble_share=bubble_share(pp, virtual, count),
        notes=(*launch.notes, *_notes(args, stages)),
    )
