"""The fastest layouts of a launch that are accepted and fit: a quick bound for all, the whole model for the first ones."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_cod.args import MegatronArgs
from megatron_cod.common.amounts import GIB
from megatron_cod.errors import UserError
from megatron_cod.estimate.memory import model_memory, stage_memory
from megatron_cod.estimate.parameters import Count, layer_count, moe_pattern
from megatron_cod.estimate.shape import microbatches
from megatron_cod.pipeline import plan_pipeline, split_from_args
from megatron_cod.planner.layer import TODAY, layer_cost, setting
from megatron_cod.planner.layouts import Layout, changed_args, layouts, without_layout
from megatron_cod.planner.machine import Machine
from megatron_cod.planner.report import LABELS
from megatron_cod.planner.simulation import Passes
from megatron_cod.planner.split import NOTHING, Cost
from megatron_cod.planner.stages import embedding_cost, head_cost
from megatron_cod.planner.step import StepTime, step_time
from megatron_cod.planner.update import update
from megatron_cod.rehearsal.launch import Launch, read_launch

MARGIN = 0.10
"""Of the device's memory, kept free for what the allocator reserves, NCCL and the CUDA context."""
_SHOWN, _NEXT = 10, 5
_ENOUGH = _SHOWN + _NEXT
SLACK = 1.03
"""The quick bound is at most so far above the time by the whole model, as a test measures."""


@dataclass(frozen=True)
class Candidate:
    """A layout with its time and its memory."""

    layout: Layout
    step: StepTime
    memory: float
    """Bytes of the stage that needs most."""


@dataclass(frozen=True)
class Loser:
    """A layout that is not among the ones shown, and why."""

    layout: Layout
    why: str


@dataclass(frozen=True)
class Suggestion:
    """What a search found."""

    best: tuple[Candidate, ...]
    losers: tuple[Loser, ...]
    searched: int
    hints: tuple[str, ...]
    has_experts: bool = False


class Bounds:
    """Quick times of layouts, most of them below the real ones; layers that several have in common are computed once."""

    def __init__(self, args: MegatronArgs, machine: Machine) -> None:
        self.args, self.machine = args, machine
        self.known: dict[tuple[Any, ...], tuple[Cost, Cost, Cost]] = {}
        self.pattern = moe_pattern(args)

    def _parts(self, layout: Layout, args: MegatronArgs) -> tuple[Cost, Cost, Cost]:
        """(a mean layer, the embedding, the head)."""
        key = (layout.tensor, layout.context, layout.expert, layout.micro_batch, layout.recompute)
        if key not in self.known:
            to = setting(args, self.machine, TODAY)
            shares = {kind: self.pattern.count(kind) / len(self.pattern) for kind in set(self.pattern)}
            mean = sum((layer_cost(to, kind).times(share) for kind, share in shares.items()), NOTHING)
            self.known[key] = mean, embedding_cost(to), head_cost(to)
        return self.known[key]

    def _once(self, args: MegatronArgs, layout: Layout) -> float:
        """What a stage does once a step."""
        layer = self._parts(layout, args)[0]
        each = args.num_layers / layout.pipeline
        passes = [Passes(layer.forward.total * each, layer.backward.total * each)]
        own = update(setting(args, self.machine, TODAY), *_of_a_stage(args), passes, tied=False)
        return own.gradients + own.weights + own.optimizer

    def seconds(self, layout: Layout) -> float:
        """The busiest stage for all micro-batches, and the passes that fill and drain the pipeline."""
        args = changed_args(self.args, layout)
        layer, embedding, head = (part.forward.total + part.backward.total for part in self._parts(layout, args))
        counted = bool(args.account_for_embedding_in_pipeline_split), bool(args.account_for_loss_in_pipeline_split)
        each = (args.num_layers + sum(counted)) / layout.pipeline
        first, last = (each - counted[0]) * layer + embedding, (each - counted[1]) * layer + head
        if layout.pipeline == 1:
            return microbatches(args) * (args.num_layers * layer + embedding + head) + self._once(args, layout)
        fill = (layout.pipeline - 1) * each * layer / layout.virtual
        return microbatches(args) * max(first, last, each * layer) + fill + self._once(args, layout)


def _of_a_stage(args: MegatronArgs) -> tuple[int, int]:
    """Parameters of a mean stage's layers on a rank, outside and in the experts."""
    pattern = moe_pattern(args)
    count = sum((layer_count(args, kind).times(pattern.count(kind)) for kind in set(pattern)), Count())
    stages = args.pipeline_model_parallel_size
    return count.dense_on_rank(args) // stages, count.experts_on_rank(args) // stages


def static_bytes(args: MegatronArgs) -> float:
    """Weights, gradients and states of a mean stage's layers: less than what any layout of these sizes needs."""
    return sum(model_memory(args, *_of_a_stage(args)))


def peak_bytes(args: MegatronArgs) -> float:
    """The peak of the stage that needs most: the first, which has most in flight, the second or the last.

    Four micro-batches a stage are enough to reach it.
    """
    short: Any = changed_batch(args, min(microbatches(args), 4 * args.pipeline_model_parallel_size))
    chunks = plan_pipeline(split_from_args(args))
    last = args.pipeline_model_parallel_size - 1
    held = {stage: [chunk for chunk in chunks if chunk.pipeline_rank == stage] for stage in {0, min(1, last), last}}
    return max(stage_memory(short, stage, found)[1].total for stage, found in held.items())


def changed_batch(args: MegatronArgs, count: int) -> MegatronArgs:
    """The arguments with ``count`` micro-batches a step."""
    new: Any = copy.copy(args)
    new.global_batch_size = count * args.micro_batch_size * args.data_parallel_size
    return new


def _fitting(
    args: MegatronArgs, machine: Machine, order: Sequence[Layout], room: float
) -> Iterator[tuple[Layout, float, bool]]:
    """(layout, bytes, whether it fits), in the order given."""
    for layout in order:
        changed = changed_args(args, layout)
        needed = static_bytes(changed)
        if needed <= room:
            needed = peak_bytes(changed)
        yield layout, needed, needed <= room


def _search(args: MegatronArgs, machine: Machine, room: float) -> tuple[list[Candidate], list[Loser], int]:
    """(candidates, the fastest first; layouts that do not fit; how many were searched)."""
    estimates = Bounds(args, machine)
    found = sorted((estimates.seconds(layout), layout) for layout in layouts(args, machine))
    quick = {layout: seconds for seconds, layout in found}
    best: list[Candidate] = []
    losers: list[Loser] = []
    for layout, needed, fits in _fitting(args, machine, [layout for _, layout in found], room):
        times = sorted(one.step.seconds for one in best)
        if len(best) >= _ENOUGH and quick[layout] > SLACK * times[_ENOUGH - 1]:
            break
        if not fits:
            losers.append(Loser(layout, f"does not fit: {needed / GIB:,.0f} GiB of {room / GIB:.0f}"))
            continue
        best.append(Candidate(layout, step_time(changed_args(args, layout), machine), needed))
    return sorted(best, key=lambda one: (one.step.seconds, one.layout)), losers, len(found)


def _slower(one: Candidate, best: Candidate) -> str:
    """Where a candidate loses most against the best one."""
    mine, other = one.step.busiest.split, best.step.busiest.split
    more = {name: getattr(mine, name) - getattr(other, name) for name in LABELS}
    name = max(more, key=lambda each: more[each])
    slower = one.step.seconds / best.step.seconds - 1
    return f"{slower:.1%} slower: {LABELS[name]} {more[name] / best.step.seconds:+.1%} of the best one's step"


def _hints(args: MegatronArgs, machine: Machine, best: Candidate) -> list[str]:
    """What would make the best layout faster, a token, by at least 1%."""
    changed = changed_args(args, best.layout)
    tries: dict[str, dict[str, Any]] = {
        "--overlap-grad-reduce": {"overlap_grad_reduce": True},
        "--overlap-grad-reduce --overlap-param-gather": {"overlap_grad_reduce": True, "overlap_param_gather": True},
        "--use-distributed-optimizer": {"use_distributed_optimizer": True},
        "--tp-comm-overlap (Transformer Engine)": {"tp_comm_overlap": best.layout.tensor > 1},
        "twice the --global-batch-size, as more micro-batches": {"global_batch_size": 2 * args.global_batch_size},
        "no recomputation, on GPUs with more memory": {"recompute_granularity": None},
    }
    lines = []
    for name, values in tries.items():
        new = changed_batch(changed, microbatches(changed))
        if all(getattr(new, field) == value for field, value in values.items()):
            continue
        for field, value in values.items():
            setattr(new, field, value)
        gain = step_time(new, machine).tokens_per_gpu / best.step.tokens_per_gpu - 1
        if gain >= 0.01:
            lines.append(f"{name}: {gain:+.1%} tokens/s")
    return lines


def base_launch(command_line: Sequence[str], world_size: int) -> Launch:
    """The launch without its layout, in one that its batch and layers allow; UserError where none is accepted."""
    stripped = without_layout(list(command_line))
    seen: list[MegatronArgs] = []
    try:
        return read_launch(stripped, world_size, parsed=seen.append)
    except UserError as error:
        if not seen or not seen[-1].num_layers or not seen[-1].global_batch_size:
            raise
        first = error
    raw = seen[-1]
    for stages in (size for size in range(1, raw.num_layers + 1) if raw.num_layers % size == 0):
        for tensor in (8, 4, 2, 1):
            replicas, rest = divmod(world_size, tensor * stages)
            if rest or not replicas or raw.global_batch_size % replicas:
                continue
            try:
                return read_launch([*stripped, *Layout(tensor, stages, 1, 1, 1, 1, "none").flags(False)], world_size)
            except UserError:
                continue
    raise first


def suggest(command_line: Sequence[str], world_size: int, machine: Machine, device: float | None = None) -> Suggestion:
    """Search the layouts of a launch. device: bytes of a GPU's memory, by default the machine's.

    UserError where the launch is refused in every layout, or none fits.
    """
    launch = base_launch(command_line, world_size)
    args = launch.args
    if args.pipeline_model_parallel_layout:
        raise UserError("--suggest chooses the pipeline's stages: give no --pipeline-model-parallel-layout")
    room = (device or machine.memory_gib * GIB) * (1 - MARGIN)
    stripped = without_layout(list(command_line))

    def refused(layout: Layout) -> str | None:
        try:
            read_launch([*stripped, *layout.flags(bool(args.num_experts))], world_size)
        except UserError as error:
            return str(error)
        return None

    found, losers, searched = _search(args, machine, room)
    if not found:
        least = f"; the nearest: {losers[0].why}" if losers else ""
        raise UserError(f"no layout of {world_size} GPUs fits into {room / GIB:.0f} GiB{least}")
    shown, others = _accepted(found, refused)
    if not shown:
        raise UserError(f"every layout that fits is refused: {others[0].why}")
    hints = _hints(args, machine, shown[0])
    return Suggestion(tuple(shown), (*others, *losers[:_NEXT]), searched, tuple(hints), bool(args.num_experts))


def _accepted(
    found: Sequence[Candidate], refused: Callable[[Layout], str | None]
) -> tuple[list[Candidate], list[Loser]]:
    """(the fastest ones that the launch accepts, those that it refuses among them and the next slower ones)."""
    shown: list[Candidate] = []
    losers: list[Loser] = []
    for place, one in enumerate(found):
        if len(shown) == _SHOWN:
            slower = [Loser(next_.layout, _slower(next_, shown[0])) for next_ in found[place : place + _NEXT]]
            return shown, losers + slower
        why = refused(one.layout)
        if why is None:
            shown.append(one)
        else:
            losers.append(Loser(one.layout, f"refused: {why}"))
    return shown, losers
