"""The estimate of a rank's memory is near the allocator's peak, for full-size models; without a term of it it is not."""

from functools import cache

import pytest

from megatron_cod.estimate import activations, memory
from megatron_cod.estimate.memory import Memory
from megatron_cod.estimate.shape import head_dim
from tests.cuda.memory import BEGIN, END, PAGE, SHAPES, estimate, measure, none

measured = cache(measure)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_estimate_is_near_the_peak(name):
    of_peak, of_activations = measured(name).off(estimate(name))
    assert abs(of_peak) < 0.03 and abs(of_activations) < 0.05, measured(name)


def test_peak_of_a_step_is_the_larger_of_passes_and_optimizer():
    parts = {"weights": 2.0, "gradients": 4.0, "optimizer": 12.0, "buffers": 1.0}
    assert Memory(**parts, activations=3.0, step=4.0).total == 23.0
    assert Memory(**parts, activations=5.0, step=4.0).total == 24.0


def rotary_in_every_layer(args):
    return 4 * args.seq_length * head_dim(args) * 2


def without_gathered_input(args, rows, share=1.0):
    return activations.weight_gradient(args, rows) + activations.WORKSPACE


EXPERTS = "350M, 8 experts, top 2, capacity 1"


def without_experts(args, parts=activations._moe_parts):
    return parts(args) | {"moe": 0.0}


def step_of_the_larger_part(args, dense, experts):
    """As with experts on several ranks."""
    return 4.0 * max(dense, experts)


MUTANTS = {
    "rotary tables": ("7B, TP 8, core_attn and mlp recomputed", activations, "layer_rotary", rotary_in_every_layer),
    "a weight's gradient in flight": ("7B, TP 8, fully recomputed", activations, "weight_gradient", none),
    "gathered input in flight": ("7B, TP 8, fully recomputed", activations, "product_backward", without_gathered_input),
    "the optimizer's step": ("7B, TP 8", memory, "step_bytes", none),
    "experts": (EXPERTS, activations, "_moe_parts", without_experts),
    "the step of experts": (EXPERTS, memory, "step_bytes", step_of_the_larger_part),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_a_term_skipped_is_found(name, monkeypatch):
    shape, module, term, mutant = MUTANTS[name]
    monkeypatch.setattr(module, term, mutant)
    of_peak, of_activations = measured(shape).off(estimate(shape))
    assert abs(of_peak) >= 0.03 or abs(of_activations) >= 0.05


def test_rows_of_the_page_are_measured_shapes():
    """docs/rehearsal.md; ``python -m tests.cuda.memory --write`` writes the table."""
    rows = PAGE.read_text().split(BEGIN)[1].split(END)[0].strip().splitlines()[2:]
    names = [row.split(" | ")[0].removeprefix("| ") for row in rows]
    assert names == list(SHAPES)
