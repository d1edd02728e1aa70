"""How a module's own kernel gets to see s * gamma instead of gamma, with nothing of activation size."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from megatron_cod.schemes.depth import times


def scaled_gain(weight: Tensor, factor: float | Tensor | None, zero_centered: bool) -> Tensor:
    """factor * gamma [h] in weight's dtype; gamma is 1 + weight when zero-centred.

    Zero-centred gamma is added up in fp32: in bf16, s * (1 + g) rounded twice loses up to 2.5% of the gain.
    """
    if zero_centered:
        gain = 1.0 + weight.float()
        return (gain if factor is None else gain * factor).to(weight.dtype)
    return weight if factor is None else times(weight, factor)


@contextmanager
def shadowed(module: torch.nn.Module, values: dict[str, Any]) -> Iterator[None]:
    """Attributes of a module, parameters included, read as ``values`` inside the block.

    An entry of the instance's own dictionary is found before the registered parameter, which is not touched: its name,
    identity, checkpoint key and optimizer state stay, and autograd reaches it through its replacement.
    """
    own = vars(module)
    before = {name: own[name] for name in values if name in own}
    own.update(values)
    try:
        yield
    finally:
        for name in values:
            del own[name]
        own.update(before)
