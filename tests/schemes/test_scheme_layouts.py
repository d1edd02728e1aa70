"""Every norm scheme in the Megatron model against the oracle: logits, gradients, three Adam steps, one process and four."""

import pytest

from tests.distributed.mapping import Layout
from tests.distributed.oracle_runs import within_tolerance
from tests.distributed.scheme_runs import FOUR, FOUR_SP, MUTANTS, ONE, VARIANTS, differences

VIRTUAL = Layout(pp=2, vp=2)

AT = {name: (ONE, FOUR_SP if "sandwich" in name or "scale" in name or "skip" in name else FOUR) for name in VARIANTS}
AT["layer_rope"] = (ONE, FOUR_SP, VIRTUAL, Layout(pp=4))
AT["layer_rope peri"] = (ONE, FOUR_SP)
REPLICAS = Layout(pp=2, dp=2, flags=("--use-distributed-optimizer",))
AT["complete_p"] = (ONE, FOUR_SP, VIRTUAL, Layout(pp=4), REPLICAS)
for name in ("hyper_connections", "mhc"):
    AT[name] = (ONE, FOUR_SP, VIRTUAL, Layout(pp=4), REPLICAS)
AT["hyper_connections static"] = (ONE, FOUR_SP, VIRTUAL)
AT["mhc 3"] = (ONE,)
AT["complete_p half"] = (ONE, FOUR_SP)
AT["mix_ln 4"] += (VIRTUAL,)
AT["mix_ln 5"] += (VIRTUAL,)
ADAM = {"lns exponent 1": (5e-3,)}
"""Deep layers have smaller gradients under exponent 1, and two of 418,880 elements amplify rounding to 2.01e-3."""
CASES = [(name, layout) for name, layouts in AT.items() for layout in layouts]


@pytest.mark.parametrize(("name", "layout"), CASES, ids=[f"{name}-{layout.name}" for name, layout in CASES])
@pytest.mark.slow_except("layer_rope-pp2 vp2", "lns-tp2 pp2")
def test_the_scheme_agrees_with_the_oracle(name, layout):
    found = differences(name, layout)
    print(name, layout.name, found)
    assert within_tolerance(found, *ADAM.get(name, ())), found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sandwich_ln", "layerscale", "skipinit"])
def test_no_weight_decay_on_added_parameters(name):
    assert within_tolerance(differences(name, ONE, decay=0.5))


def decayed_scale() -> None:
    """The mutant: LayerScale's vector has two dimensions, so Megatron decays it."""
    import torch

    from megatron_cod.schemes.branch_scale import LearnedScaleJoin

    right = LearnedScaleJoin.__init__

    def init(self, *args, **kwargs):
        right(self, *args, **kwargs)
        self.scale = torch.nn.Parameter(self.scale[None])

    LearnedScaleJoin.__init__ = init


@pytest.mark.slow
def test_a_decayed_scale_is_caught():
    found = differences("layerscale", ONE, decayed_scale, decay=0.5)
    assert not within_tolerance(found)
    assert found["logits"] < 1e-5  # all is right before the first step


@pytest.mark.parametrize(("name", "layout", "mutate"), MUTANTS, ids=[mutant[2].__name__ for mutant in MUTANTS])
@pytest.mark.slow
def test_detects_wrong_scheme(name, layout, mutate):
    found = differences(name, layout, mutate)
    assert not within_tolerance(found)
    assert found["logits"] > 1e-2, found
