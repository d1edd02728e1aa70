"""Where samples begin in packed rows, asked of the device at most once a batch."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

Made = TypeVar("Made")


class PackedSamples(PackedSeqParams):
    """Megatron's parameters of the ``thd`` format, with the same facts on the host; no padding, no context parallelism."""

    def __init__(self, positions: Tensor, on_host: Tensor | None = None) -> None:
        """positions: of each token [t] in its sample, on the device; a sample begins wherever they start again.

        on_host: the same in host memory, where the caller has them: then the device is not waited for.
        """
        host = positions.cpu() if on_host is None else on_host
        starts = (host == 0).nonzero().flatten().tolist()
        bounds = torch.tensor([*starts, host.numel()], dtype=torch.int32)
        if positions.is_cuda:
            bounds = bounds.pin_memory().to(positions.device, non_blocking=True)
        self.positions = positions
        self.lengths = [end - start for start, end in zip(starts, [*starts[1:], host.numel()], strict=True)]
        self._made: dict[int, tuple[Any, Any]] = {}
        longest = max(self.lengths)
        super().__init__(
            qkv_format="thd", cu_seqlens_q=bounds, cu_seqlens_kv=bounds, max_seqlen_q=longest, max_seqlen_kv=longest
        )

    def once(self, source: object, make: Callable[[], Made]) -> Made:
        """What ``make`` makes of a source for this batch; the layers that ask later get the same."""
        if id(source) not in self._made:
            self._made[id(source)] = (source, make())  # the source is kept, so that its id is no other's
        made: Made = self._made[id(source)][1]
        return made
