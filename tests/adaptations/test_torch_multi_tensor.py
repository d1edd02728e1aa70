"""Operations over lists of tensors against Megatron's loops, to the bit, and that no loop of Megatron's is left in use."""

import sys

import pytest
import torch
from megatron.core import utils
from megatron.core.optimizer import optimizer as of_optimizer
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from megatron_cod.adaptations import torch_multi_tensor
from megatron_cod.adaptations.table import owner
from megatron_cod.adaptations.torch_only import TORCH_ADAPTED

pytestmark = pytest.mark.usefixtures("one_process")
NOOP = torch.zeros(1, dtype=torch.int)


def some(dtype=torch.float32):
    torch.manual_seed(5)
    return [(torch.randn(*shape) * 3).to(dtype) for shape in ((7, 5), (64,), (1,), (33, 2))]


def test_norm_equals_megatrons():
    ours, _ = torch_multi_tensor.l2_norm(0, NOOP, [some()], False)
    theirs, _ = utils.local_multi_tensor_l2_norm(0, NOOP, [some()], False)
    assert torch.equal(ours, theirs) and ours.shape == (1,)
    half, _ = torch_multi_tensor.l2_norm(0, NOOP, [some(torch.bfloat16)], False)
    assert half.dtype == torch.float32 and half == pytest.approx(ours, rel=1e-2)


@pytest.mark.parametrize("in_place", [True, False])
def test_scaling_equals_megatrons(in_place):
    outcomes = []
    for scale in (torch_multi_tensor.scale, utils.local_multi_tensor_scale):
        source = some()
        target = source if in_place else [torch.empty_like(one) for one in source]
        scale(0, NOOP, [source, target], 0.37)
        outcomes.append(target)
    assert all(torch.equal(*pair) for pair in zip(*outcomes, strict=True))


def test_copies_equal_megatrons():
    ours, theirs = ([torch.empty_like(one, dtype=torch.bfloat16) for one in some()] for _ in range(2))
    torch_multi_tensor.copy(some(), ours)
    for source, target in zip(some(), theirs, strict=True):
        target.copy_(source)
    assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))
    overflow = torch.ones(1, dtype=torch.int)
    torch_multi_tensor.copy([], [], overflow)
    assert not overflow


def sharded(tensors):
    """As FSDP2 has them, over the one process."""
    mesh = init_device_mesh("cpu", (1,))
    return [distribute_tensor(one, mesh, [Shard(0)]) for one in tensors]


def test_accepts_sharded_tensors_of_fsdp2():
    ours = sharded([torch.empty_like(one, dtype=torch.bfloat16) for one in some()])
    torch_multi_tensor.copy(sharded(some()), ours)
    assert all(torch.equal(one.to_local(), of.bfloat16()) for one, of in zip(ours, some(), strict=True))
    scaled = sharded([torch.empty_like(one) for one in some()])
    torch_multi_tensor.scale(0, NOOP, [sharded(some()), scaled], 0.37)
    assert all(torch.equal(one.to_local(), of * 0.37) for one, of in zip(scaled, some(), strict=True))


def test_every_use_of_a_loop_is_adapted():
    """Wherever Megatron's loop over tensors is bound to a name, a row puts ours in its place (or has done so here)."""
    loops = (utils.local_multi_tensor_l2_norm, utils.local_multi_tensor_scale)
    rows = {(owner(row.module).__name__, row.name) for row in TORCH_ADAPTED}
    assert of_optimizer.__name__ in {module for module, _ in rows}
    bound = {
        (name, attribute)
        for name, module in list(sys.modules.items())
        if name.startswith("megatron.") and name != utils.__name__
        for attribute, value in list(vars(module).items())
        if any(value is loop for loop in loops)
    }
    # Under the name of the fallback itself it is what Megatron was imported with; the other name is what is called.
    called = {(name, attribute) for name, attribute in bound if not attribute.startswith("local_")}
    assert called <= rows, called - rows
