"""The model on emulated devices against the float64 vectors, in the tolerances of the CPU."""

import pytest
from safetensors.torch import load_file

from tests.cuda.on_device import on_device
from tests.distributed.launch import run_ranks
from tests.distributed.mapping import Layout
from tests.distributed.oracle_runs import DISTRIBUTED, SP, VECTORS, compare, within_tolerance, worker

OVERLAP = ("--overlap-grad-reduce", "--overlap-param-gather")
ROPE = ("--no-rope-fusion",)
LAYOUTS = [
    Layout(flags=ROPE),
    Layout(tp=2, flags=(*SP, *ROPE)),
    Layout(pp=2, vp=2, flags=ROPE),
    Layout(dp=2, flags=(*DISTRIBUTED, *OVERLAP, *ROPE)),
]


def differences(layout: Layout, mutate=None) -> dict[str, dict[str, float]]:
    vectors = load_file(VECTORS)
    results = run_ranks(layout.world, on_device, mutated, mutate, layout, timeout=500)
    return {
        scheme: compare([result[scheme] for result in results], layout, vectors, scheme) for scheme in ("pre_ln", "lns")
    }


def mutated(rank: int, mutate, layout: Layout) -> dict:
    if mutate is not None:
        mutate()
    return worker(rank, layout)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
@pytest.mark.slow_except(LAYOUTS[0].name)
def test_the_device_agrees_with_the_vectors(layout):
    for scheme, found in differences(layout).items():
        print(layout.name, scheme, found)
        assert within_tolerance(found), (scheme, found)


def attention_to_what_follows() -> None:
    """The mutant: no causal mask."""
    import torch

    right = torch.nn.functional.scaled_dot_product_attention
    torch.nn.functional.scaled_dot_product_attention = lambda *args, **kwargs: right(
        *args, **kwargs | {"is_causal": False}
    )


@pytest.mark.slow
def test_attention_without_a_mask_is_caught():
    assert not within_tolerance(differences(LAYOUTS[0], attention_to_what_follows)["lns"])
