"""Packed rows through the real model, against each sample run alone through the oracle: losses and gradients per token.

The gradient is that of the mean over the answer tokens of the whole batch, which the samples share unevenly over rows,
micro-batches and replicas.
"""

from collections.abc import Callable
from functools import partial

import pytest
import torch

from megatron_cod.data.chat.rows import filled
from tests.distributed import packing
from tests.distributed.engine import MODEL_FLAGS, shape_flags, start_megatron
from tests.distributed.launch import WorkerError, run_ranks
from tests.distributed.mapping import Layout
from tests.distributed.packing import PER_TOKEN, ROWS, SIZE, differences, leaks, one_pass, plan, samples, within, worker
from tests.distributed.variants import SHAPE as VARIANT_SHAPE
from tests.distributed.variants import VariantEngine

SP = ("--sequence-parallel",)


def test_the_rows_are_worth_testing():
    """Several samples in a row, padding in one, and answers spread unevenly."""
    rows = plan()
    assert len(rows) == ROWS and max(map(len, rows)) >= 3
    held = samples()
    positions = [sum(held.positions()[n] for n in row) for row in rows]
    assert SIZE in positions and min(positions) < SIZE - 5
    answers = [sum(held[n][1][1:].sum() for n in row) for row in rows]
    assert max(answers) > 2 * min(answers)


LAYOUTS = [
    Layout(),
    Layout(tp=2, flags=SP),
    Layout(pp=2),
    Layout(pp=2, vp=2),
    Layout(dp=2, flags=("--use-distributed-optimizer",)),
    pytest.param(Layout(tp=2, pp=2, flags=(*SP, "--use-distributed-optimizer")), marks=pytest.mark.slow),
    pytest.param(Layout(pp=4), marks=pytest.mark.slow),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
@pytest.mark.slow_except("pp2 vp2")
def test_packed_samples_are_as_if_alone(layout):
    results = run_ranks(layout.world, worker, layout)
    for scheme in ("pre_ln", "lns"):
        found = differences(results, layout, scheme)
        print(layout.name, scheme, found)
        assert within(found), (scheme, found)


@pytest.mark.parametrize("layout", [Layout(), Layout(dp=2)], ids=lambda layout: layout.name)
@pytest.mark.slow
def test_several_rows_a_micro_batch(layout):
    found = differences(run_ranks(layout.world, partial(worker, micro=2), layout), layout, "lns")
    assert within(found), found


@pytest.mark.parametrize("layout", [Layout(), Layout(pp=2)], ids=lambda layout: layout.name)
@pytest.mark.slow
def test_a_sample_a_row(layout):
    found = differences(
        run_ranks(layout.world, partial(worker, pack=False, micro=2), layout), layout, "lns", pack=False
    )
    assert within(found), found


def only_the_first_stage_knows() -> None:
    """Boundaries are known where the tokens go in, and nowhere behind."""
    from megatron.core import mpu

    from megatron_cod.training.data import batches

    right = batches.packed_batch
    leaks()
    wrong = batches.packed_batch
    batches.packed_batch = lambda batch: (right if mpu.is_pipeline_first_stage(ignore_virtual=True) else wrong)(batch)


def middle_stages_read_nothing() -> None:
    """As in pretraining, where they need no data."""
    from megatron_cod.training.data import batches

    right = batches.get_batch
    batches.get_batch = lambda iterator, vp_stage=None, everywhere=False: right(iterator, vp_stage)


def _other_masks(change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    right = packing.filled

    def wrong(*arguments):
        row = right(*arguments)
        real = torch.zeros(SIZE)
        real[: sum(len(samples()[n][0]) - 1 for n in arguments[1])] = 1.0
        return {**row, "loss_mask": change(row["loss_mask"], real)}

    packing.filled = wrong


def loss_on_the_prompt() -> None:
    _other_masks(lambda _, real: real)


def mask_one_too_early() -> None:
    _other_masks(lambda mask, real: torch.cat([mask[1:], mask[:1] * 0]) * real)


def mask_one_too_late() -> None:
    _other_masks(lambda mask, real: torch.cat([mask[:1] * 0, mask[:-1]]) * real)


def nothing() -> None: ...


MUTANTS = [
    (leaks, Layout(), PER_TOKEN, "loss"),
    (leaks, Layout(pp=2), PER_TOKEN, "loss"),
    (only_the_first_stage_knows, Layout(pp=2), PER_TOKEN, "loss"),
    (loss_on_the_prompt, Layout(), PER_TOKEN, "grad"),
    (mask_one_too_early, Layout(), PER_TOKEN, "grad"),
    (mask_one_too_late, Layout(), PER_TOKEN, "grad"),
    (nothing, Layout(), (), "grad"),  # a mean per micro-batch
    (nothing, Layout(dp=2), (), "grad"),
]
NAMES = [
    f"{mutant.__name__ if flags else 'mean per micro-batch'}-{layout.name}" for mutant, layout, flags, _ in MUTANTS
]


@pytest.mark.parametrize(("mutant", "layout", "flags", "seen"), MUTANTS, ids=NAMES)
@pytest.mark.slow
def test_a_mutant_is_caught(mutant, layout, flags, seen):
    results = run_ranks(layout.world, partial(worker, mutate=mutant, flags=flags), layout)
    found = differences(results, layout, "lns")
    print(mutant.__name__, found)
    assert not within(found)
    assert found[seen] > 1e-4, found


def test_a_stage_that_reads_nothing_cannot_pass():
    # Of the rank that asserts, or of a neighbour that sees it go.
    with pytest.raises(WorkerError, match=r"AssertionError|Connection (reset|closed) by peer"):
        run_ranks(4, partial(worker, mutate=middle_stages_read_nothing), Layout(pp=4))


MLA = (
    *("--multi-latent-attention", "--q-lora-rank", "16", "--kv-lora-rank", "16", "--qk-head-dim", "8"),
    *("--qk-pos-emb-head-dim", "8", "--v-head-dim", "12", "--qk-layernorm"),
)
ARCHITECTURES = {
    "gqa": ("--group-query-attention", "--num-query-groups", "2"),
    "mla": MLA,
    "learned positions": ("--position-embedding-type", "learned_absolute"),
    "recompute": ("--recompute-granularity", "full", "--recompute-method", "uniform", "--recompute-num-layers", "1"),
}


def by_itself(_rank: int, flags: tuple[str, ...]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Losses [rows, s] of packed rows, and of each sample in a row of its own, from one model."""
    from megatron_cod.training.data import batches

    layout = Layout(flags=flags)
    batch = ["--micro-batch-size", "1", "--global-batch-size", str(ROWS)]
    args = start_megatron([*MODEL_FLAGS, *shape_flags(VARIANT_SHAPE, SIZE), *batch, *PER_TOKEN, *layout.all_flags()])
    engine = VariantEngine(args, layout, "lns")
    engine.fill(lambda _, whole: whole)
    held = samples(VARIANT_SHAPE.vocab)
    packed = one_pass(engine, [filled(held, row, SIZE, 0) for row in plan()], True, 1, batches)["losses"]
    rows = [[number] for number in range(10)] + [[], []]
    losses = [
        one_pass(engine, [filled(held, row, SIZE, 0) for row in rows[n : n + ROWS]], False, 1, batches)["losses"]
        for n in range(0, len(rows), ROWS)
    ]
    return packed, list(torch.cat(losses))


@pytest.mark.slow_except("learned positions")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_packs(name):
    [(packed, single)] = run_ranks(1, by_itself, ARCHITECTURES[name])
    lengths = samples().positions()
    for row, losses in zip(plan(), packed, strict=True):
        start = 0
        for sample in row:
            part = losses[start : start + lengths[sample]]
            assert (part - single[sample][: lengths[sample]]).abs().max() <= 1e-5, (name, sample)
            start += lengths[sample]
