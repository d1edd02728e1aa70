"""Hyper-connections: n streams H, H A + F(N(H a)) b^T (Zhu et al., arXiv 2409.19606), with static or dynamic a, A, b.

Dynamic: to the static numbers of stream i, its norm N'(h_i) W adds s tanh(N'(h_i) W), with W = 0 and s = 0.01 at the
start. Then a block reads stream k mod n, k counting attentions and MLPs from 0, A = I and b = 1: the model is Pre-LN.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules
from torch import Tensor

from megatron_cod.schemes.options import option
from megatron_cod.schemes.overlay import NormBuilder, Norms
from megatron_cod.schemes.row import NotFoldable, Scheme
from megatron_cod.schemes.streams import (
    Collapsed,
    StreamJoin,
    apart,
    bind_streams,
    check_streams,
    own,
    stream_overlay,
    unsupported_with_streams,
)

_SCALE = 0.01
"""Of the dynamic part, at the start."""


@dataclass(frozen=True)
class HyperOptions:
    """How many streams, and whether their weights depend on them."""

    hyper_connections_streams: int = option(
        4, help="residual streams of hyper_connections (default: 4)", type=int, metavar="N"
    )
    hyper_connections_static: bool = option(
        False, help="hyper_connections with learned numbers alone, which do not depend on the token"
    )


class HyperJoin(StreamJoin):
    """H A + F b^T: for each stream i, its share of what is read, its weight of the branch, and row i of A."""

    def __init__(self, config: TransformerConfig, streams: int, dynamic: bool) -> None:
        super().__init__(config, streams)
        dtype = config.params_dtype
        # One dimension: Megatron does not decay it, nor does the paper.
        self.static = torch.nn.Parameter(torch.empty(streams * (streams + 2), dtype=dtype))
        self.dynamic = dynamic
        if dynamic:
            self.weight = torch.nn.Parameter(torch.empty(streams + 2, config.hidden_size, dtype=dtype))
            self.gates = torch.nn.Parameter(torch.empty(2, dtype=dtype))
        own(self, config)
        self._sublayer = 0
        self.reset_parameters()

    def start(self, sublayer: int) -> None:
        self._sublayer = sublayer
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start values; called again where weights are made on the meta device first."""
        n = self.streams
        with torch.no_grad():
            start = torch.cat([torch.zeros(n, 1), torch.ones(n, 1), torch.eye(n)], dim=1)
            start[self._sublayer % n, 0] = 1.0
            self.static.copy_(start.flatten())
            if self.dynamic:
                self.weight.zero_()
                self.gates.fill_(_SCALE)

    def _weights(self, streams: Tensor, columns: slice) -> Tensor:
        """[s, b, n, h] -> [s, b, n, columns] in fp32, of 0: read, 1: write, 2...: mix."""
        static = self.static.float().unflatten(0, (self.streams, -1))[:, columns]
        if not self.dynamic:
            return static.expand(*streams.shape[:2], *static.shape)
        normed = F.rms_norm(streams.float(), streams.shape[-1:], eps=self.config.layernorm_epsilon)
        places = torch.zeros(self.streams + 2, dtype=torch.long, device=streams.device)
        places[1] = 1  # the scale of the weight of the branch; the other one is that of reading and mixing
        scale = self.gates.float()[places[columns]]
        return static + scale * torch.tanh(F.linear(normed, self.weight.float()[columns]))

    def reading(self, streams: Tensor) -> Tensor:
        return self._weights(streams, slice(0, 1)).squeeze(-1)

    def writing(self, streams: Tensor) -> tuple[Tensor, Tensor]:
        found = self._weights(streams, slice(1, None))
        return found[..., 1:], found[..., 0]


def hyper_overlay(
    submodules: TransformerLayerSubmodules, config: TransformerConfig, norms: Norms, options: HyperOptions
) -> TransformerLayerSubmodules:
    """Norms that read, joins that mix."""
    dynamic = not options.hyper_connections_static
    return stream_overlay(
        submodules, config, norms, HyperJoin, streams=options.hyper_connections_streams, dynamic=dynamic
    )


def _final(norm: NormBuilder, options: HyperOptions) -> NormBuilder:
    """The norm of the sum of the streams."""
    streams = options.hyper_connections_streams

    def build(config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> torch.nn.Module:
        return Collapsed(lambda x: apart(x, streams).sum(dim=2), norm(config, hidden_size, eps))

    return build


def _join_parameters(hidden: int, options: HyperOptions) -> int:
    rows = options.hyper_connections_streams + 2
    dynamic = 0 if options.hyper_connections_static else rows * hidden + 2
    return options.hyper_connections_streams * rows + dynamic


HYPER_CONNECTIONS = Scheme(
    name="hyper_connections",
    block="H A + F(N(H a)) b^T for n streams H; a, A, b learned, and dependent on H",
    reference="Zhu et al., arXiv 2409.19606",
    default_init="normal",
    options=HyperOptions,
    overlay=hyper_overlay,
    bind=bind_streams,
    final=_final,
    streams=lambda options: options.hyper_connections_streams,
    check=lambda options, _layers: check_streams("--hyper-connections-streams", options.hyper_connections_streams),
    layer_parameters=lambda hidden, _norm, options: 2 * _join_parameters(hidden, options),
    unsupported=unsupported_with_streams,
    stock=NotFoldable("it has several residual streams"),
    one_graph=False,
)
