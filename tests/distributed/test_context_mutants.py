"""Wrong context parallelism put into the real model: the comparison that ``test_oracle`` makes sees all of it.

And masked tokens, of which the ranks of a sequence hold unequal numbers: the mean is that of one process.
"""

from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.engine import MODEL_FLAGS, Engine, shape_flags, start_megatron
from tests.distributed.launch import WorkerError, run_ranks
from tests.distributed.mapping import Layout, assemble
from tests.distributed.oracle_runs import SHAPE, VECTORS, compare, init_weights, within_tolerance, worker


def chunks_in_a_row() -> None:
    """The causal mask of ranks that hold neighbouring chunks: 2r and 2r + 1."""
    from megatron_cod.backends import torch_context_parallel

    torch_context_parallel.chunk_numbers = lambda rank, _: (2 * rank, 2 * rank + 1)


def keys_out_of_order() -> None:
    """Keys stand as the ranks hold them, not as they follow in the sequence."""
    from megatron_cod.backends import torch_context_parallel

    torch_context_parallel._in_order = lambda gathered, _: gathered


def gradients_of_own_queries() -> None:
    """A rank's keys get the gradient of its own queries alone."""
    from torch import distributed

    from megatron_cod.backends import torch_context_parallel

    def kept(output, given, group):
        output.copy_(given.chunk(distributed.get_world_size(group))[distributed.get_rank(group)])

    torch_context_parallel.dist.reduce_scatter_tensor = kept


def gradients_out_of_order() -> None:
    from megatron_cod.backends import torch_context_parallel

    torch_context_parallel._by_rank = lambda ordered, _: ordered


def mutated(rank: int, layout: Layout, mutate: Callable[[], None]) -> dict:
    mutate()
    return worker(rank, layout)


MUTANTS = [chunks_in_a_row, keys_out_of_order, gradients_of_own_queries, gradients_out_of_order]


@pytest.mark.parametrize("mutate", MUTANTS, ids=lambda mutate: mutate.__name__)
@pytest.mark.slow_except("gradients_of_own_queries")
def test_detects_mutant(mutate):
    layout = Layout(cp=2)
    try:
        results = run_ranks(layout.world, mutated, layout, mutate)
    except WorkerError as error:
        pytest.fail(f"the mutant does not run: {error}")
    found = compare([result["lns"] for result in results], layout, load_file(VECTORS), "lns")
    print(mutate.__name__, found)
    assert not within_tolerance(found)
    # A wrong gradient does not change the first losses: the forward is right.
    assert (found["logits"] > 1e-5) == (mutate in (chunks_in_a_row, keys_out_of_order))


PER_TOKEN = ("--calculate-per-token-loss",)


def own_mean() -> None:
    """Each rank's loss is the mean of its own tokens, as Megatron has it."""
    from megatron_cod.training.data import batches

    batches.balanced = lambda loss, _: loss


def masks() -> torch.Tensor:
    """[2, 32]: of the first rank's chunks at CP 2, one at each end, nearly nothing counts."""
    counted = torch.rand(2, 32, generator=torch.Generator().manual_seed(5)) < 0.7
    counted[:, :8] = counted[0, 24:] = False
    return counted.float()


def masked(_rank: int, layout: Layout, flags: tuple[str, ...], mutate: Callable[[], None] | None) -> dict:
    """Gradients of one batch with masked tokens, and what is reported of its loss."""
    from megatron_cod.training.data.batches import forward_step

    if mutate is not None:
        mutate()
    vectors = load_file(VECTORS)
    batch = ["--micro-batch-size", "1", "--global-batch-size", "2", *flags]
    engine = Engine(
        start_megatron([*MODEL_FLAGS, *shape_flags(SHAPE, 32), *batch, *layout.all_flags()]), layout, SHAPE, "lns"
    )
    engine.load(init_weights(vectors))
    rows = list(engine.iterator(vectors["tokens"][:1], vectors["labels"][:1]))
    batches = [{**row, "loss_mask": mask[None]} for row, mask in zip(rows, masks(), strict=True)]
    reported = engine.pass_over(iter(batches), forward_step)
    return {"grad": engine.parts("main_grad"), "loss": torch.stack([one["lm loss"] for one in reported]).sum(0)}


def distance(layout: Layout, flags: tuple[str, ...] = (), mutate: Callable[[], None] | None = None) -> float:
    """Of the gradients from those of one process, over their largest; the loss is reported alike."""
    one = run_ranks(1, masked, Layout(), flags, None)
    some = run_ranks(layout.world, masked, layout, flags, mutate)
    expected, found = (sum(rank["loss"] for rank in ranks) for ranks in (one, some))
    assert torch.allclose(found, expected, rtol=1e-6) and expected[1] == masks().sum()
    like = init_weights(load_file(VECTORS))
    theirs, ours = (assemble([rank["grad"] for rank in ranks], like) for ranks in (one, some))
    largest = max(float(gradient.abs().max()) for gradient in theirs.values())
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours) / largest


@pytest.mark.parametrize("flags", [(), PER_TOKEN], ids=["mean", "per token"])
@pytest.mark.slow
def test_masked_tokens_have_the_weight_of_one_process(flags):
    assert distance(Layout(cp=2), flags) <= 1e-5


@pytest.mark.slow
def test_detects_mean_of_means():
    assert distance(Layout(cp=2), (), own_mean) > 1e-2
