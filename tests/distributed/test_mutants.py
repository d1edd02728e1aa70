"""Wrong implementations of LayerNorm Scaling, each put into the real model: all must be caught.

Caught either before the first step, by the depth check, or by the comparison that ``test_oracle`` makes.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.engine import MODEL_FLAGS, Engine, shape_flags, start_megatron
from tests.distributed.launch import WorkerError, run_ranks
from tests.distributed.mapping import Layout
from tests.distributed.oracle_runs import SHAPE, VECTORS, compare, init_weights, within_tolerance


def _rebind(choose: Callable[[Any, int], float | None]) -> None:
    """Replace what the LNS layer binds: ``choose(layer, norm index)`` gives the factor (None: leave it as it is)."""
    from megatron_cod.schemes.depth import depth_scaled_modules
    from megatron_cod.schemes.design import SchemeTransformerLayer

    original = SchemeTransformerLayer.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        self._given = kwargs.get("layer_number", 1)  # the stage-local number Megatron passes in
        original(self, *args, **kwargs)
        for index, norm in enumerate(depth_scaled_modules(self)):
            factor = choose(self, index)
            if factor is not None:
                norm.depth_factor = factor

    SchemeTransformerLayer.__init__ = init


def _root(number: float) -> float:
    return number**-0.5


def stage_local() -> None:
    _rebind(lambda layer, _: _root(layer._given))


def zero_based() -> None:
    _rebind(lambda layer, _: _root(max(layer.layer_number - 1, 1)))


def sub_layer_counting() -> None:
    _rebind(lambda layer, index: _root(2 * layer.layer_number - 1 + index))


def attention_norm_only() -> None:
    _rebind(lambda layer, index: None if index == 0 else 1.0)


def mlp_norm_only() -> None:
    _rebind(lambda layer, index: None if index == 1 else 1.0)


def branch_output() -> None:
    """The factor behind attention and MLP instead of before them."""
    from megatron_cod.schemes.design import SchemeTransformerLayer

    original = SchemeTransformerLayer.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        for branch in (self.self_attention, self.mlp):
            branch.register_forward_hook(lambda _m, _i, out: (out[0] * _root(self.layer_number), out[1]))

    SchemeTransformerLayer.__init__ = init
    _rebind(lambda *_: 1.0)


def final_norm_scaled() -> None:
    from megatron.core.transformer.transformer_block import TransformerBlock

    original = TransformerBlock.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if self.final_layernorm is not None:
            self.final_layernorm.register_forward_hook(lambda _m, _i, out: out * _root(self.config.num_layers))

    TransformerBlock.__init__ = init


def gamma_folded_once() -> None:
    """Gamma multiplied once after loading, nothing in the forward: "gamma-init", another method."""
    _rebind(lambda *_: 1.0)


def worker(_rank: int, mutate: Callable[[], None] | None, layout: Layout, check_depth: bool) -> dict:
    from megatron_cod import model

    if mutate is not None:
        mutate()
    if not check_depth:
        model.refuse_wrong_depth = lambda chunks, factor: chunks
    vectors = load_file(VECTORS)
    batch = ["--micro-batch-size", "1", "--global-batch-size", "2"]
    args = start_megatron([*MODEL_FLAGS, *shape_flags(SHAPE, 32), *batch, *layout.all_flags()])
    engine = Engine(args, layout, SHAPE, "lns")
    engine.load(init_weights(vectors))
    if mutate is gamma_folded_once:
        with torch.no_grad():
            for _, name, parameter in engine.parameters():
                if name.endswith(("input_layernorm.weight", "pre_mlp_layernorm.weight")):
                    parameter.mul_(_root(int(name.split(".")[2]) + 1))
        engine.optimizer.reload_model_params()
    result = engine.forward_backward(vectors["tokens"][0], vectors["labels"][0])
    result["losses"] = engine.train(vectors["tokens"], vectors["labels"])
    result["params"] = engine.parts("data")
    return result


ONE, PP2 = Layout(), Layout(pp=2)
CASES = [
    (stage_local, PP2, True),
    (zero_based, ONE, True),
    (sub_layer_counting, ONE, True),
    (attention_norm_only, ONE, True),
    (mlp_norm_only, ONE, True),
    (branch_output, ONE, True),
    (final_norm_scaled, ONE, False),
    (gamma_folded_once, ONE, True),
]


@pytest.mark.parametrize(("mutate", "layout", "_depth"), CASES, ids=[case[0].__name__ for case in CASES])
@pytest.mark.slow_except("branch_output", "gamma_folded_once")
def test_comparison_detects_mutant(mutate, layout, _depth):
    found = compare(run_ranks(layout.world, worker, mutate, layout, False), layout, load_file(VECTORS), "lns")
    assert not within_tolerance(found), found
    if mutate is not gamma_folded_once:  # its first forward is the same by construction
        assert found["logits"] > 0.1, found


@pytest.mark.parametrize(
    ("mutate", "layout"), [case[:2] for case in CASES if case[2]], ids=[c[0].__name__ for c in CASES if c[2]]
)
@pytest.mark.slow_except(
    "stage_local",
    "zero_based",
    "gamma_folded_once",
)
def test_the_start_up_check_refuses(mutate, layout):
    with pytest.raises(WorkerError, match="wrong depth factor: pipeline stage"):
        run_ranks(layout.world, worker, mutate, layout, True)


def test_the_unmutated_worker_passes():
    found = compare(run_ranks(1, worker, None, ONE, True), ONE, load_file(VECTORS), "lns")
    assert within_tolerance(found), found
