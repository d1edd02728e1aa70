"""The whole model on Transformer Engine's modules against the vectors and the oracle, over layouts and schemes."""

import pytest
from safetensors.torch import load_file

from tests.distributed import scheme_runs
from tests.distributed.launch import run_ranks
from tests.distributed.mapping import Layout
from tests.distributed.oracle_runs import SP, VECTORS, compare, within_tolerance, worker
from tests.te.flags import FUSER, TE

LAYOUTS = [
    Layout(flags=TE),
    Layout(tp=2, flags=(*TE, *SP)),
    Layout(pp=2, vp=2, flags=TE),
    Layout(tp=2, pp=2, flags=(*TE, *SP, "--use-distributed-optimizer")),
    Layout(flags=(*TE, *FUSER)),
]


@pytest.mark.slow_except(
    "one transformer-impl transformer_engine attention-backend unfused",
    "one transformer-impl transformer_engine attention-backend unfused use-transformer-engine-op-fuser",
    "pp2 vp2 transformer-impl transformer_engine attention-backend unfused",
    "tp2 pp2 transformer-impl transformer_engine attention-backend unfused sequence-parallel use-distributed-optimizer",
)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_layout_agrees_with_the_vectors(layout):
    vectors = load_file(VECTORS)
    results = run_ranks(layout.world, worker, layout)
    for scheme in ("pre_ln", "lns"):
        found = compare([r[scheme] for r in results], layout, vectors, scheme)
        print(layout.name, scheme, found)
        assert within_tolerance(found), (layout.name, scheme, found)


@pytest.mark.slow_except(
    "complete_p",
    "deepnorm",
    "hyper_connections",
    "layer_rope",
    "layerscale",
    "lns",
    "lns warm-up",
    "mhc",
    "mix_ln 5",
    "post_ln",
    "sandwich_ln",
    "skipinit",
)
@pytest.mark.parametrize("name", scheme_runs.VARIANTS)
def test_the_scheme_agrees_with_the_oracle(name):
    layout = Layout(pp=2, flags=TE) if name.startswith("mix_ln") else Layout(flags=TE)
    found = scheme_runs.differences(name, layout)
    print(name, found)
    assert within_tolerance(found), found
