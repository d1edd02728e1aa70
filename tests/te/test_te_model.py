"""The whole model on Transformer Engine's modules against the vectors and the oracle, over layouts and schemes."""

import pytest
from safetensors.torch import load_file

from tests.distributed import test_schemes
from tests.distributed.launch import run_ranks
from tests.distributed.mapping import Layout
from tests.distributed.test_oracle import SP, VECTORS, compare, within_tolerance, worker

TE = ("--transformer-impl", "transformer_engine", "--attention-backend", "unfused")
FUSER = ("--use-transformer-engine-op-fuser",)
LAYOUTS = [
    Layout(flags=TE),
    Layout(tp=2, flags=(*TE, *SP)),
    Layout(pp=2, vp=2, flags=TE),
    Layout(tp=2, pp=2, flags=(*TE, *SP, "--use-distributed-optimizer")),
    Layout(flags=(*TE, *FUSER)),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_layout_agrees_with_the_vectors(layout):
    vectors = load_file(VECTORS)
    results = run_ranks(layout.world, worker, layout)
    for scheme in ("pre_ln", "lns"):
        found = compare([r[scheme] for r in results], layout, vectors, scheme)
        print(layout.name, scheme, found)
        assert within_tolerance(found), (layout.name, scheme, found)


@pytest.mark.parametrize("name", test_schemes.VARIANTS)
def test_the_scheme_agrees_with_the_oracle(name):
    layout = Layout(pp=2, flags=TE) if name.startswith("mix_ln") else Layout(flags=TE)
    found = test_schemes.differences(name, layout)
    print(name, found)
    assert within_tolerance(found), found
