"""The rotary on the device: what the host computes, and no wait for either table or angles."""

from functools import partial
from typing import Any

import torch

from tests.backends.rotary import angles, difference, inputs, outcome
from tests.distributed.launch import run_ranks


def outcomes(_rank: int, packed: bool) -> list[list[torch.Tensor]]:
    """Turned queries and keys and their gradients, by the host and by the device; then where the device was waited for."""
    import fakecuda

    from megatron_cod.backends.packed_samples import PackedSamples
    from megatron_cod.backends.torch_rotary import rotate, tables

    fakecuda.begin_rank("numerics,report")
    found = []
    for device in ("cpu", "cuda"):
        query, key = (one.detach().to(device).requires_grad_() for one in inputs(shape=(24, 2), groups=2))
        rotation = tables.get(angles().to(device), torch.float32, False, 1.0)
        if packed:
            on_host = torch.cat([torch.arange(length) for length in (10, 14)])
            samples = PackedSamples(on_host.to(device), on_host)
            rotation = samples.once(rotation, partial(rotation.at, samples.positions))
        found.append([one.cpu() for one in outcome(query, key, rotate(query, key, rotation, rotation))])
    return found


def test_device_rotates_as_the_host():
    for packed in (False, True):
        on_host, on_device = run_ranks(1, outcomes, packed)[0]
        assert difference(on_device, on_host) <= 1e-6


def waits(_rank: int) -> Any:
    import fakecuda

    from megatron_cod.backends.packed_samples import PackedSamples
    from megatron_cod.backends.torch_rotary import rotate, tables

    fakecuda.begin_rank("numerics,report")
    query, key = (one.detach().cuda().requires_grad_() for one in inputs(shape=(24, 1)))
    on_host = torch.cat([torch.arange(length) for length in (10, 14)])
    positions, of = on_host.cuda(), angles().cuda()
    fakecuda.reset()
    samples = PackedSamples(positions, on_host)
    rotation = tables.get(of, torch.float32, False, 1.0).at(samples.positions)
    turned = rotate(query, key, rotation, rotation)
    torch.autograd.backward(turned, [torch.ones_like(one) for one in turned])
    known = sum(fakecuda.WAITS.values())
    PackedSamples(positions)
    return known, sum(fakecuda.WAITS.values()) - known


def test_packed_rows_wait_once_where_the_host_does_not_know_them():
    assert run_ranks(1, waits)[0] == (0, 1)
