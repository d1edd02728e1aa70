"""Work of the host by blocks of tokens: what one operator writes is still in the cache when the next one reads it."""

from collections.abc import Iterator

import torch
from torch import Tensor


def tokens_at_once(hidden: int) -> int:
    """How many tokens a block has for products over this hidden size.

    More tokens do not fit into a core's second cache; with fewer, products are slow (the wider, the more they need).
    """
    return max(512, 1 << (2 * hidden - 1).bit_length()) * torch.get_num_threads()


def blocks(count: int, size: int) -> Iterator[slice]:
    """0 to count in slices of ``size``; the last one may be shorter."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def is_for_host(x: Tensor, *weights: Tensor) -> bool:
    """Whether the host's own functions compute x with these: on the host, in one wide dtype, outside a compiler.

    A compiler fuses and makes blocks itself. In half precision sums over blocks would lose digits.
    """
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64) or torch.compiler.is_compiling():
        return False
    return all(one.dtype == x.dtype and one.device == x.device for one in weights)


def has_several_blocks(x: Tensor) -> bool:
    """Whether x [..., h] has more tokens than one block."""
    hidden = x.shape[-1]
    return x.numel() > hidden * tokens_at_once(hidden)


def needs_gradients(*tensors: Tensor) -> bool:
    """Whether autograd records what is computed from these."""
    return torch.is_grad_enabled() and any(one.requires_grad for one in tensors)
