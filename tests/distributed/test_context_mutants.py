"""Wrong context parallelism put into the real model: the comparison that ``test_oracle`` makes sees all of it."""

from collections.abc import Callable

import pytest
from safetensors.torch import load_file

from tests.distributed.launch import WorkerError, run_ranks
from tests.distributed.mapping import Layout
from tests.distributed.test_oracle import VECTORS, compare, within_tolerance, worker


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
@pytest.mark.slow_except("chunks_in_a_row", "gradients_of_own_queries")
def test_it_is_seen(mutate):
    layout = Layout(cp=2)
    try:
        results = run_ranks(layout.world, mutated, layout, mutate)
    except WorkerError as error:
        pytest.fail(f"the mutant does not run: {error}")
    found = compare([result["lns"] for result in results], layout, load_file(VECTORS), "lns")
    print(mutate.__name__, found)
    assert not within_tolerance(found)
    # Of a wrong gradient the first losses tell nothing: the forward is right.
    assert (found["logits"] > 1e-5) == (mutate in (chunks_in_a_row, keys_out_of_order))
