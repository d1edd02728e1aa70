"""What the tests of this folder share: launches to predict, and the published rows once."""

import functools

from megatron_cod.args import MegatronArgs
from megatron_cod.planner.layouts import Layout, changed_args, layouts
from megatron_cod.planner.machine import BUILT_IN
from megatron_cod.planner.published import Compared, all_compared
from megatron_cod.rehearsal.launch import read_launch
from tests.conftest import ROOT

H100 = BUILT_IN["h100"]
SEVEN = ["--recipe", str(ROOT / "recipes" / "llama_7b.yaml"), "--mock-data"]
EXPERTS = [
    *("--num-experts", "8", "--moe-router-topk", "2", "--moe-ffn-hidden-size", "2048"),
    *("--moe-token-dispatcher-type", "alltoall", "--expert-model-parallel-size", "2"),
]


@functools.cache
def launched(*flags: str, world: int = 64) -> MegatronArgs:
    return read_launch([*SEVEN, *flags], world).args


def some_layouts(args: MegatronArgs, every: int) -> list[Layout]:
    """Each ``every``-th layout of the search."""
    return list(layouts(args, H100))[::every]


def some_args() -> list[MegatronArgs]:
    """Dense and with experts, over layouts of all kinds."""
    few = ("--global-batch-size", "128")
    dense, experts = launched(*few), launched(*EXPERTS, *few)
    found = [changed_args(dense, layout) for layout in some_layouts(dense, 29)]
    return found + [changed_args(experts, layout) for layout in some_layouts(experts, 149)]


@functools.cache
def published() -> list[Compared]:
    return all_compared()
