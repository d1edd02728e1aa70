"""Several residual streams [s, n b, h], those of a sample side by side, from the first block to the final norm.

A block's norm reads one [s, b, h] of them, its join mixes them and writes the branch to all: Megatron's layer runs as it
is. The first join of the model makes n streams of the embedding, the final norm makes one of n.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules
from torch import Tensor

from megatron_cod.errors import UserError
from megatron_cod.schemes.overlay import Norms, with_joins
from megatron_cod.schemes.residual import ResidualJoin

MOST = 16
"""Streams."""


def spread(x: Tensor, streams: int) -> Tensor:
    """[s, b, h] -> [s, n b, h], copies side by side."""
    return x.repeat_interleave(streams, dim=1)


def apart(x: Tensor, streams: int) -> Tensor:
    """[s, n b, h] -> [s, b, n, h]."""
    return x.unflatten(1, (-1, streams))


def open_outside(model: torch.nn.Module) -> None:
    """From now on block 1 is given n streams, as the others are: for an analysis, which runs blocks one by one.

    UserError for a scheme whose blocks make the streams otherwise.
    """
    found = [module for module in model.modules() if isinstance(module, StreamJoin)]
    if not found:
        raise UserError(
            "this norm scheme has several residual streams of its own making, which the analysis cannot follow"
        )
    for module in found:
        module.opens = False


def own(module: torch.nn.Module, config: TransformerConfig) -> None:
    """Mark parameters that each tensor-parallel rank has whole: under sequence parallelism it sees s/TP tokens."""
    for parameter in module.parameters(recurse=False):
        parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


class StreamJoin(ResidualJoin):
    """Streams H [s, n b, h] and a branch's output [s, b, h] -> the new streams; and what the branch reads of H."""

    opens: bool = False
    """Whether it is the first of the model, whose residual is the embedding."""

    def __init__(self, config: TransformerConfig, streams: int) -> None:
        super().__init__(config)
        self.streams = streams

    def start(self, sublayer: int) -> None:
        """Start values that depend on the place in the model: attention and MLP of block 1 are 0 and 1, and so on."""

    def _streams(self, x: Tensor) -> Tensor:
        return apart(spread(x, self.streams) if self.opens else x, self.streams)

    def read(self, x: Tensor) -> Tensor:
        """The residual -> the input [s, b, h] of the branch's norm."""
        streams = self._streams(x)
        return torch.einsum("sbn,sbnh->sbh", self.reading(streams).to(streams.dtype), streams)

    def combined(self, residual: Tensor, branch: Tensor) -> Tensor:
        streams = self._streams(residual)
        mixing, writing = (one.to(streams.dtype) for one in self.writing(streams))
        mixed = torch.matmul(mixing.transpose(-1, -2), streams)
        return (mixed + writing.unsqueeze(-1) * branch.unsqueeze(2)).flatten(1, 2)

    def reading(self, streams: Tensor) -> Tensor:
        """[s, b, n, h] -> weights [s, b, n]."""
        raise NotImplementedError

    def writing(self, streams: Tensor) -> tuple[Tensor, Tensor]:
        """[s, b, n, h] -> (mixing [s, b, n, n], from stream i to stream j; weights of the branch [s, b, n])."""
        raise NotImplementedError


class Collapsed(torch.nn.Module):
    """The final norm, of one [s, b, h] made of the streams."""

    def __init__(self, collapse: Callable[[Tensor], Tensor], norm: torch.nn.Module) -> None:
        super().__init__()
        self.collapse, self.norm = collapse, norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.collapse(x))


def stream_overlay(
    submodules: TransformerLayerSubmodules,
    config: TransformerConfig,
    norms: Norms,
    join: type[StreamJoin],
    **params: Any,
) -> TransformerLayerSubmodules:
    """Norms that can read streams, and joins that mix them."""
    return with_joins(norms.deferred(submodules), config, join, **params)


def bind_streams(layer: Any, number: int, _config: TransformerConfig, _options: Any) -> None:
    """Each norm reads what its branch's join reads; start values and the first join of the model."""
    places = ((layer.input_layernorm, layer.self_attn_bda), (layer.pre_mlp_layernorm, layer.mlp_bda))
    for branch, (norm, join) in enumerate(places):
        norm.read_by(join)
        join.opens = number == 1 and branch == 0
        join.start(2 * (number - 1) + branch)


def unsupported_with_streams(config: TransformerConfig, _backend: str, _options: Any) -> list[str]:
    """What has one stream, or other shapes than a block's."""
    asked = {
        "--mtp-num-layers (its layers read one stream)": config.mtp_num_layers,
        "--cuda-graph-impl (its buffers have the size of one stream)": config.cuda_graph_impl != "none",
        "--inference-fuse-tp-communication": config.inference_fuse_tp_communication,
    }
    return [text for text, is_asked in asked.items() if is_asked]


def check_streams(flag: str, streams: int) -> None:
    """UserError for a number of streams that makes no sense."""
    if not 2 <= streams <= MOST:
        raise UserError(f"{flag} {streams} must be at least 2 and at most {MOST}; one stream is --norm-scheme pre_ln")
