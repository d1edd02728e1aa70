"""Any causal language model as embedding -> blocks 1..L -> head, without knowing its code.

A model is run once on a batch while its blocks are watched; the arguments they got (masks, rotary embeddings) then let
each be called alone, on another stream, omitted or in another order. The head is the model itself with its blocks made
to hand on a given stream. Streams are [b, s, h] here, whatever the model's own layout. The n streams of a model that has
several are one of [b, s, n h], so that whatever is measured of a token's stream is measured of all of them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_cod.errors import UserError

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments of a block beside the stream."""


@dataclass
class Trace:
    """One batch through the model."""

    tokens: Tensor
    """[b, s]"""
    streams: list[Tensor]
    """L + 1 of [b, s, h]: before block 1, ..., before block L, and after it."""
    calls: list[Call]
    rests: list[tuple[Any, ...] | None]
    """What each block returned behind its stream; None where it returned the stream alone."""
    logits: Tensor
    """[b, s, v]"""


class TracedModel:
    """A model whose blocks can be run one by one. Blocks are numbered 1..L, in the order of the model."""

    def __init__(
        self,
        run: Callable[[Tensor], Tensor],
        blocks: Sequence[torch.nn.Module],
        *,
        batch_first: bool = True,
        vocab_size: int | None = None,
        module: torch.nn.Module | None = None,
        streams: int = 1,
    ) -> None:
        """run: tokens [b, s] -> logits [b, s, v], through all ``blocks`` once, in order. module: the whole model.
        streams: n, for blocks on [s, n b, h], those of a sequence side by side, block 1 too."""
        self._run = run
        self._module = module
        self.blocks = list(blocks)
        self._batch_first = batch_first
        self.vocab_size = vocab_size
        self._streams = streams

    @property
    def depth(self) -> int:
        """L."""
        return len(self.blocks)

    def to(self, device: str) -> None:
        """Move the whole model."""
        if self._module is not None:
            self._module.to(device)

    def _outside(self, stream: Tensor) -> Tensor:
        """A block's own layout -> [b, s, h], or [b, s, n h]."""
        outside = stream if self._batch_first else stream.transpose(0, 1)
        if self._streams == 1:
            return outside
        return outside.unflatten(0, (-1, self._streams)).transpose(1, 2).flatten(2)

    def _inside(self, stream: Tensor) -> Tensor:
        """And back."""
        if self._streams > 1:
            stream = stream.unflatten(2, (self._streams, -1)).transpose(1, 2).flatten(0, 1)
        return stream if self._batch_first else stream.transpose(0, 1)

    def trace(self, tokens: Tensor) -> Trace:
        """Run a batch of tokens [b, s]. UserError where a block is not run once, in order, or has no stream."""
        calls: list[Call] = []
        rests: list[tuple[Any, ...] | None] = []
        streams: list[Tensor] = []
        order: list[int] = []

        def watch(number: int) -> Callable[..., None]:
            def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
                stream, *rest = args if args else (kwargs["hidden_states"],)
                kept = {name: value for name, value in kwargs.items() if name != "hidden_states"}
                calls.append((tuple(rest), kept))
                streams.append(self._outside(stream))
                order.append(number)
                rests.append(output[1:] if isinstance(output, tuple) else None)
                if number == self.depth:
                    streams.append(self._outside(_first(output)))

            return hook

        handles = [
            block.register_forward_hook(watch(number), with_kwargs=True) for number, block in enumerate(self.blocks, 1)
        ]
        try:
            logits = self._run(tokens)
        except KeyError:
            raise UserError("a block was called without hidden_states: these are not the blocks of a decoder") from None
        finally:
            for handle in handles:
                handle.remove()
        if order != list(range(1, self.depth + 1)):
            raise UserError(f"the blocks ran in the order {order}, not once each from 1 to {self.depth}")
        return Trace(tokens, streams, calls, rests, logits)

    def block(self, trace: Trace, number: int, stream: Tensor) -> Tensor:
        """Block ``number`` on a stream [b, s, h], with the arguments it had in ``trace``."""
        args, kwargs = trace.calls[number - 1]
        return self._outside(_first(self.blocks[number - 1](self._inside(stream), *args, **kwargs)))

    def through(self, trace: Trace, stream: Tensor, numbers: Sequence[int]) -> Tensor:
        """A stream [b, s, h] through some blocks, in the order given."""
        for number in numbers:
            stream = self.block(trace, number, stream)
        return stream

    def head(self, trace: Trace, stream: Tensor) -> Tensor:
        """Logits [b, s, v] of a stream [b, s, h] that would have left the last block."""
        inner = self._inside(stream)
        with _handing_on(self.blocks, trace.rests, inner):
            return self._run(trace.tokens)

    def losses(self, trace: Trace, stream: Tensor | None = None) -> Tensor:
        """Mean next-token loss of every sequence, [b]; of the traced run itself, or of another last stream."""
        logits = trace.logits if stream is None else self.head(trace, stream)
        targets = trace.tokens[:, 1:]
        flat = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), targets.flatten(), reduction="none")
        return flat.view(targets.shape).mean(dim=1)


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def _handing_on(
    blocks: Sequence[torch.nn.Module], rests: Sequence[tuple[Any, ...] | None], last: Tensor
) -> Iterator[None]:
    """Inside, no block computes: each passes its stream on, and the last one gives ``last``."""

    def passing(number: int) -> Callable[..., Any]:
        rest = rests[number]

        def forward(*args: Any, **kwargs: Any) -> Any:
            stream = last if number == len(blocks) - 1 else args[0] if args else kwargs["hidden_states"]
            return stream if rest is None else (stream, *rest)

        return forward

    before = [vars(block).get("forward") for block in blocks]
    for number, block in enumerate(blocks):
        vars(block)["forward"] = passing(number)
    try:
        yield
    finally:
        for block, own in zip(blocks, before, strict=True):
            if own is None:
                del vars(block)["forward"]
            else:
                vars(block)["forward"] = own
