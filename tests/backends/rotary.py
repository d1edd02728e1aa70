"""Inputs of rotary embeddings, and what became of them."""

import torch

S, B, HEADS, D = 24, 2, 4, 16


def angles(length=S, width=D, interleaved=False, batch=1, offset=0):
    inverse = 10000.0 ** -(torch.arange(0, width, 2) / width)
    half = torch.outer(torch.arange(length) + float(offset), inverse)
    whole = half.repeat_interleave(2, -1) if interleaved else torch.cat((half, half), -1)
    # Unequal ones for the two partners, which the formula allows and no embedding of Megatron's has.
    whole = whole + torch.linspace(0, 0.1, width)
    return torch.stack([whole * (1 + row) for row in range(batch)], 1)[:, :, None]


def inputs(groups=HEADS, shape=(S, B)):
    """Views into one tensor, as Megatron's projection makes them."""
    torch.manual_seed(3)
    mixed = torch.randn(*shape, groups, (HEADS // groups + 2) * D)
    query, key, _ = mixed.split([HEADS // groups * D, D, D], -1)
    query = query.reshape(*shape, HEADS, D)
    return [query.detach().requires_grad_(), key.detach().requires_grad_()]


def outcome(query, key, turned):
    sum((one * torch.linspace(-1, 1, one.numel(), device=one.device).view_as(one)).sum() for one in turned).backward()
    return [*(one.detach() for one in turned), query.grad, key.grad]


def difference(ours, theirs):
    assert all(one.shape == other.shape for one, other in zip(ours, theirs, strict=True))
    return max(float((one - other).abs().max()) for one, other in zip(ours, theirs, strict=True))
