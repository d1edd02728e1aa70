"""The time of one step of a launch on a machine, and how each pipeline stage spends it."""

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_cod.args import MegatronArgs
from megatron_cod.errors import UserError
from megatron_cod.estimate.parameters import Count, chunk_count
from megatron_cod.estimate.shape import microbatches, virtual_group
from megatron_cod.pipeline import StagePlan, plan_pipeline, split_from_args
from megatron_cod.planner.collectives import gather, send
from megatron_cod.planner.layer import TODAY, Setting, Software, setting
from megatron_cod.planner.machine import Machine
from megatron_cod.planner.operators import precision
from megatron_cod.planner.simulation import Passes, Pipeline, finish_times
from megatron_cod.planner.split import Cost, Split
from megatron_cod.planner.stages import chunk_cost, layer_costs, model_flops
from megatron_cod.planner.update import Update, update
from megatron_cod.schemes.design import design_from_args


@dataclass(frozen=True)
class StageTime:
    """One pipeline stage; its split adds up to the step."""

    stage: int
    split: Split
    hidden: float
    """Communication that computing hides, in seconds beside the split."""


@dataclass(frozen=True)
class StepTime:
    """One step."""

    machine: str
    seconds: float
    stages: tuple[StageTime, ...]
    tokens: int
    gpus: int
    flops: float
    """Model FLOPs of the step, over all GPUs."""
    peak: float
    """FLOP/s of one GPU by its data sheet."""

    @property
    def busiest(self) -> StageTime:
        """The stage that computes longest: the one that the others wait for."""
        return min(self.stages, key=lambda one: (one.split.bubble + one.split.pipeline, one.stage))

    @property
    def tokens_per_gpu(self) -> float:
        """A second."""
        return self.tokens / self.seconds / self.gpus

    @property
    def tflops(self) -> float:
        """Model TFLOP/s of a GPU."""
        return self.flops / self.seconds / self.gpus / 1e12

    @property
    def mfu(self) -> float:
        return self.tflops * 1e12 / self.peak


@dataclass(frozen=True)
class Chunk:
    """One virtual stage with its cost."""

    plan: StagePlan
    cost: Cost

    @property
    def passes(self) -> Passes:
        return Passes(self.cost.forward.total, self.cost.backward.total)


def transfer_seconds(to: Setting) -> float:
    """A micro-batch's activations, or their gradients, from a stage to the next: all streams of the scheme."""
    args = to.args
    if args.pipeline_model_parallel_size == 1:
        return 0.0
    size, stride = to.own_stream * design_from_args(args).streams, to.places.stage_stride
    if to.software.scatters_transfers and not args.sequence_parallel:
        part = size / args.tensor_model_parallel_size
        return send(to.machine, stride, part) + gather(to.machine, to.places.tensor, size)
    return send(to.machine, stride, size)


def stage_chunks(to: Setting) -> list[list[Chunk]]:
    """[stage][virtual stage]."""
    plans = plan_pipeline(split_from_args(to.args))
    layers = layer_costs(to, plans)
    chunks = [Chunk(plan, chunk_cost(to, plan, layers)) for plan in plans]
    stages = range(to.args.pipeline_model_parallel_size)
    return [[chunk for chunk in chunks if chunk.plan.pipeline_rank == stage] for stage in stages]


def pipeline_of(args: MegatronArgs, stages: Sequence[Sequence[Chunk]]) -> Pipeline:
    """What the simulation needs of them."""
    group = virtual_group(args) if len(stages[0]) > 1 else None
    return Pipeline([[chunk.passes for chunk in stage] for stage in stages], microbatches(args), group)


def stage_update(to: Setting, chunks: Sequence[Chunk]) -> Update:
    """What a stage does once a step."""
    args = to.args
    count = sum((chunk_count(args, chunk.plan) for chunk in chunks), Count())
    tied = any(chunk.plan.embedding or chunk.plan.loss for chunk in chunks)
    passes = [chunk.passes for chunk in chunks]
    return update(to, count.dense_on_rank(args), count.experts_on_rank(args), passes, tied)


def _stage_time(stage: int, chunks: Sequence[Chunk], count: int, own: Update, whole: Split, moved: float) -> StageTime:
    """whole: seconds of the passes and gradients of all stages (bubble), of weights (data) and the optimizer.

    count: micro-batches. moved: how much later the passes end because transfers take time.
    """
    once = sum((chunk.cost.forward + chunk.cost.backward for chunk in chunks), Split())
    busy = once.times(count) + Split(data=own.gradients)
    waiting = max(0.0, whole.bubble - busy.total)
    late = min(moved, waiting)
    split = busy + Split(bubble=waiting - late, pipeline=late, data=whole.data, optimizer=whole.optimizer)
    return StageTime(stage, split, sum(chunk.cost.hidden for chunk in chunks) * count + own.hidden)


def step_time(args: MegatronArgs, machine: Machine, software: Software = TODAY) -> StepTime:
    """The step of a launch. args: Megatron's, after validation, of an architecture that the plan can count."""
    to = setting(args, machine, software)
    stages = stage_chunks(to)
    pipeline = pipeline_of(args, stages)
    transfer = transfer_seconds(to)
    blocking = not (args.overlap_p2p_comm and pipeline.chunks > 1)
    ends = finish_times(pipeline, transfer, blocking)
    moved = max(ends) - max(finish_times(pipeline)) if transfer else 0.0
    updates = [stage_update(to, chunks) for chunks in stages]
    whole = Split(
        bubble=max(end + one.gradients for end, one in zip(ends, updates, strict=True)),
        data=max(one.weights for one in updates),
        optimizer=max(one.optimizer for one in updates),
    )
    times = tuple(
        _stage_time(stage, chunks, pipeline.microbatches, updates[stage], whole, moved)
        for stage, chunks in enumerate(stages)
    )
    return StepTime(
        machine=machine.name,
        seconds=whole.total,
        stages=times,
        tokens=args.global_batch_size * args.seq_length,
        gpus=args.world_size,
        flops=model_flops(args),
        peak=machine.peak(precision(args)),
    )


def refuse_unfit(world_size: int, machine: Machine) -> None:
    """UserError where the launch's ranks do not fill the machine's nodes."""
    count = machine.gpus_per_node
    if world_size > count and world_size % count:
        raise UserError(
            f"--world-size {world_size} is not a multiple of the {count} GPUs of a node of the machine {machine.name}"
        )
