"""Which global layers every pipeline stage is to hold, from the arguments alone: the plan to compare a built model with.

Megatron's own helpers answer for the process that asks (with a pipeline layout they ignore the rank they are given), and
accept layouts that they then build wrongly. So the plan counts layers stage by stage in the order a token passes them,
without any formula for an offset, and refuses what Megatron would get wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from megatron.core.parallel_state import default_embedding_ranks
from megatron.core.transformer.enums import LayerType
from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout

from megatron_cod.args import MegatronArgs
from megatron_cod.errors import UserError

FIRST, LAST = "--decoder-first-pipeline-num-layers", "--decoder-last-pipeline-num-layers"
LAYOUT, PP, VP = (
    "--pipeline-model-parallel-layout",
    "--pipeline-model-parallel-size",
    "--num-virtual-stages-per-pipeline-rank",
)


class LayoutError(UserError):
    """A pipeline layout that cannot be built as requested; its text names the flags."""


@dataclass(frozen=True)
class PipelineSplit:
    """The arguments about the pipeline."""

    num_layers: int
    pipeline_size: int = 1
    virtual_size: int = 1
    first: int | None = None
    last: int | None = None
    with_embedding: bool = False
    """Whether the embedding counts as a layer when layers are dealt out."""
    with_loss: bool = False
    layout: str | None = None
    mtp_layers: int = 0


@dataclass(frozen=True)
class StagePlan:
    """One model chunk: pipeline stage and virtual stage, both from 0, and what it holds."""

    pipeline_rank: int
    virtual_stage: int
    layers: tuple[int, ...]
    """Global 1-based numbers of its decoder layers."""
    mtp: tuple[int, ...] = ()
    """Multi-token-prediction layers; their numbers continue, L + k."""
    embedding: bool = False
    loss: bool = False


def split_from_args(args: MegatronArgs) -> PipelineSplit:
    """The split that command-line arguments ask for (Megatron's names, before or after its validation)."""
    pp, layers = args.pipeline_model_parallel_size, args.num_layers
    embedding, loss = args.account_for_embedding_in_pipeline_split, args.account_for_loss_in_pipeline_split
    per_chunk = args.num_layers_per_virtual_pipeline_stage
    given = {VP: args.num_virtual_stages_per_pipeline_rank, LAYOUT: args.pipeline_model_parallel_layout}
    asked = [flag for flag, value in given.items() if value is not None]
    if per_chunk is not None:
        asked.append("--num-layers-per-virtual-pipeline-stage")
        dealt = layers + embedding + loss
        if args.decoder_first_pipeline_num_layers or args.decoder_last_pipeline_num_layers:
            raise LayoutError(f"{asked[-1]} does not go with {FIRST} or {LAST}: use {VP}")
        if dealt % (pp * per_chunk):
            raise LayoutError(f"{dealt} layers do not divide over {PP} {pp} x {asked[-1]} {per_chunk}")
    if len(asked) > 1:
        raise LayoutError(f"{' and '.join(asked)} both set how the pipeline is cut; give one of them")
    virtual = args.num_virtual_stages_per_pipeline_rank or 1
    return PipelineSplit(
        num_layers=layers,
        pipeline_size=pp,
        virtual_size=virtual if per_chunk is None else (layers + embedding + loss) // pp // per_chunk,
        first=args.decoder_first_pipeline_num_layers,
        last=args.decoder_last_pipeline_num_layers,
        with_embedding=embedding,
        with_loss=loss,
        layout=args.pipeline_model_parallel_layout,
        mtp_layers=args.mtp_num_layers or 0,
    )


def _parsed(layout: str, pipeline_size: int) -> PipelineParallelLayerLayout:
    """Megatron's reading of a layout string, its assertions turned into one line."""
    try:
        return PipelineParallelLayerLayout(layout, pipeline_size)
    except AssertionError as error:
        text = " ".join(str(error).split())
        if text.startswith("Invalid layer character"):
            raise LayoutError(
                f"{LAYOUT} {layout!r}: unknown letter {text.split()[3]!r}; there are E (embedding), t (layer), "
                f"m (multi-token prediction), L (loss), and | between stages"
            ) from None
        stages = PipelineParallelLayerLayout.get_num_stages_from_str(layout)
        raise LayoutError(f"{LAYOUT} {layout!r} has {stages} stages, not a multiple of {PP} {pipeline_size}") from None


def _from_layout(split: PipelineSplit) -> list[list[tuple[int, int, bool, bool]]]:
    """[virtual stage][stage] -> (layers, mtp layers, embedding, loss) of a layout string; LayoutError if it is wrong."""
    assert split.layout is not None
    clash = split.first or split.last or split.with_embedding or split.with_loss
    if clash:
        raise LayoutError(f"{LAYOUT} gives the whole layout; remove {FIRST}, {LAST} and --account-for-...")
    parsed = _parsed(split.layout, split.pipeline_size)
    letters = parsed.flatten_layout
    held = letters.count(LayerType.decoder)
    if held != split.num_layers:
        raise LayoutError(f"{LAYOUT} {split.layout!r} holds {held} layers, but --num-layers is {split.num_layers}")
    if letters.count(LayerType.mtp) != split.mtp_layers:
        raise LayoutError(
            f"{LAYOUT} {split.layout!r} holds {letters.count(LayerType.mtp)} m, but --mtp-num-layers is {split.mtp_layers}"
        )
    try:
        parsed.validate_layer_layout(split.num_layers, split.mtp_layers)
    except (AssertionError, NotImplementedError) as error:
        raise LayoutError(f"{LAYOUT} {split.layout!r}: {' '.join(str(error).split())}") from None
    return [
        [
            (
                chunk.count(LayerType.decoder),
                chunk.count(LayerType.mtp),
                LayerType.embedding in chunk,
                LayerType.loss in chunk,
            )
            for chunk in (parsed.layout[rank][virtual] for rank in range(split.pipeline_size))
        ]
        for virtual in range(parsed.virtual_pipeline_model_parallel_size)
    ]


def _uneven(split: PipelineSplit) -> list[int]:
    """Layers of each stage with first or last counts."""
    if split.with_embedding or split.with_loss:
        raise LayoutError(
            f"{FIRST} and {LAST} do not go with --account-for-embedding-in-pipeline-split and "
            "--account-for-loss-in-pipeline-split"
        )
    if split.pipeline_size == 1:
        raise LayoutError(f"{FIRST} and {LAST} need {PP} of at least 2: with one stage Megatron builds too few layers")
    for flag, count in ((FIRST, split.first), (LAST, split.last)):
        if count is not None and count < 1:
            raise LayoutError(f"{flag} {count} must be at least 1; an empty stage needs {LAYOUT}")
    middle = split.pipeline_size - (split.first is not None) - (split.last is not None)
    left = split.num_layers - (split.first or 0) - (split.last or 0)
    if middle == 0 and split.virtual_size > 1:
        raise LayoutError(
            f"{FIRST} with {LAST} and virtual stages at {PP} 2 makes Megatron divide by zero; omit one of the two, "
            f"or use {LAYOUT}"
        )
    if left < 0 or bool(left) != bool(middle) or (middle and left % middle):
        raise LayoutError(
            f"{left} of --num-layers {split.num_layers} are left for {middle} stages between {FIRST} {split.first} and "
            f"{LAST} {split.last}: they do not divide"
        )
    counts = [left // middle if middle else 0] * split.pipeline_size
    counts[0] = split.first or counts[0]
    counts[-1] = split.last or counts[-1]
    return counts


def _even(split: PipelineSplit) -> list[int]:
    """Units of each stage, embedding and loss counted as units where they are asked to be."""
    units = split.num_layers + split.with_embedding + split.with_loss
    if units % split.pipeline_size:
        counted = f" (with embedding and loss: {units})" if units != split.num_layers else ""
        raise LayoutError(
            f"--num-layers {split.num_layers}{counted} does not divide over {PP} {split.pipeline_size}: choose a "
            f"divisor, or an uneven split with {FIRST} / {LAYOUT}"
        )
    return [units // split.pipeline_size] * split.pipeline_size


def plan_pipeline(split: PipelineSplit) -> list[StagePlan]:
    """Every chunk in the order a token passes them. LayoutError, naming the flags, where it cannot be built."""
    if split.num_layers < 1 or split.pipeline_size < 1 or split.virtual_size < 1:
        raise LayoutError(f"--num-layers {split.num_layers}, {PP} {split.pipeline_size}: both must be at least 1")
    if split.layout is not None:
        table = _from_layout(split)
    else:
        uneven = split.first is not None or split.last is not None
        counts = _uneven(split) if uneven else _even(split)
        wrong = next((count for count in counts if count % split.virtual_size), None)
        if wrong is not None:
            raise LayoutError(f"a stage's {wrong} layers do not divide over {split.virtual_size} virtual stages ({VP})")
        last_virtual, last_rank = split.virtual_size - 1, split.pipeline_size - 1
        table = []
        for virtual in range(split.virtual_size):
            row = []
            for rank, count in enumerate(counts):
                embedding, loss = (virtual, rank) == (0, 0), (virtual, rank) == (last_virtual, last_rank)
                layers = count // split.virtual_size
                layers -= (split.with_embedding and embedding) + (split.with_loss and loss)
                if layers < 0:
                    raise LayoutError(f"stage {rank} would hold {layers} layers once embedding and loss are counted")
                row.append((layers, split.mtp_layers if loss else 0, embedding, loss))
            table.append(row)
    if split.pipeline_size == 1 and len(table) > 1:
        raise LayoutError(f"{len(table)} virtual stages need {PP} of at least 2: with one stage nothing interleaves")
    return _numbered(table, split.num_layers)


def _numbered(table: Sequence[Sequence[tuple[int, int, bool, bool]]], num_layers: int) -> list[StagePlan]:
    plans, decoder, mtp = [], 0, num_layers
    for virtual, row in enumerate(table):
        for rank, (layers, extra, embedding, loss) in enumerate(row):
            held = tuple(range(decoder + 1, decoder + layers + 1))
            ahead = tuple(range(mtp + 1, mtp + extra + 1))
            decoder, mtp = decoder + layers, mtp + extra
            plans.append(StagePlan(rank, virtual, held, ahead, embedding, loss))
    return plans


def embedding_ranks(args: MegatronArgs, pipeline_ranks: list[int]) -> list[int]:
    """Which ranks of one pipeline hold a copy of the word embeddings: Megatron sums their gradients over these.

    Megatron's own choice is the first and the last. With multi-token prediction on a stage of its own that misses its
    copy, and adds the embedding's gradient to an untied output layer.
    """
    if not args.mtp_num_layers:
        return default_embedding_ranks(pipeline_ranks)
    tied = not args.untie_embeddings_and_output_weights
    holders = {
        plan.pipeline_rank
        for plan in plan_pipeline(split_from_args(args))
        if plan.embedding or plan.mtp or (plan.loss and tied)
    }
    return [pipeline_ranks[stage] for stage in sorted(holders)]
