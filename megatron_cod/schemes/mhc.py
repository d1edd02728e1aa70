"""Manifold-constrained hyper-connections (Xie et al., arXiv 2512.24880): n streams, mixed by doubly stochastic matrices.

Per attention and MLP, and per token, from x = RMS(all streams together): read a = sigmoid(s1 x W1 + c1), write
b = 2 sigmoid(s2 x W2 + c2), mix A = Sinkhorn(s3 x W3 + C3): H <- A^T H + b F(N(a H)). Before the final norm the streams
are read once more. Numbers, their order and every epsilon are those of transformers' ``DeepseekV4HyperConnection``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules
from torch import Tensor

from megatron_cod.errors import UserError
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

_EPS = 1e-6
_GATE = 0.01
"""The scales s at the start."""
_IDENTITY = 1.0
"""C3's diagonal at the start: A has 0.48 there for n = 4. The nearer A is to a permutation, the more iterations it takes to
be doubly stochastic (with 3, 20 leave 1e-3 or more of some tokens); with 16, its gradient is rounding."""


@dataclass(frozen=True)
class MhcOptions:
    """How many streams, and how long their mixing is made doubly stochastic."""

    mhc_streams: int = option(4, help="residual streams of mhc (default: 4)", type=int, metavar="N")
    mhc_iterations: int = option(
        20, help="Sinkhorn iterations of mhc's mixing matrices (default: 20)", type=int, metavar="K"
    )


def sinkhorn(logits: Tensor, iterations: int) -> Tensor:
    """[..., n, n] -> doubly stochastic: rows are normalised, then columns, ``iterations`` times."""
    found = torch.softmax(logits, dim=-1) + _EPS
    found = found / (found.sum(dim=-2, keepdim=True) + _EPS)
    for _ in range(iterations - 1):
        found = found / (found.sum(dim=-1, keepdim=True) + _EPS)
        found = found / (found.sum(dim=-2, keepdim=True) + _EPS)
    return found


def projected(streams: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS(streams [..., n, h] together) W^T, in fp32: [..., rows of W]. Scaled after the product, which keeps less."""
    flat = streams.flatten(-2).float()
    size = torch.rsqrt(flat.square().mean(dim=-1, keepdim=True) + eps)
    return F.linear(flat, weight.float()) * size


class _Start:
    """Start values of what reads n streams: each counts 1/n, which gives the stream that they are copies of."""

    @staticmethod
    def reading(streams: int) -> Tensor:
        return torch.full((streams,), -math.log(streams - 1))


class MhcJoin(StreamJoin):
    """A^T H + b F; rows of ``weight`` and ``base`` are those of read [n], write [n], mix [n n]."""

    def __init__(self, config: TransformerConfig, streams: int, iterations: int) -> None:
        super().__init__(config, streams)
        self.iterations = iterations
        rows, dtype = streams * (streams + 2), config.params_dtype
        self.weight = torch.nn.Parameter(torch.empty(rows, streams * config.hidden_size, dtype=dtype))
        self.base = torch.nn.Parameter(torch.empty(rows, dtype=dtype))
        self.gates = torch.nn.Parameter(torch.empty(3, dtype=dtype))
        own(self, config)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start values; called again where weights are made on the meta device first."""
        n = self.streams
        with torch.no_grad():
            self.config.init_method(self.weight)
            self.base.copy_(torch.cat([_Start.reading(n), torch.zeros(n), _IDENTITY * torch.eye(n).flatten()]))
            self.gates.fill_(_GATE)

    def _rows(self, streams: Tensor, rows: slice) -> Tensor:
        return projected(streams, self.weight[rows], self.config.layernorm_epsilon)

    def reading(self, streams: Tensor) -> Tensor:
        rows = slice(0, self.streams)
        return torch.sigmoid(self._rows(streams, rows) * self.gates[0].float() + self.base[rows].float()) + _EPS

    def writing(self, streams: Tensor) -> tuple[Tensor, Tensor]:
        n, base = self.streams, self.base.float()
        write, mix = self._rows(streams, slice(n, None)).split([n, n * n], dim=-1)
        weights = 2 * torch.sigmoid(write * self.gates[1].float() + base[n : 2 * n])
        logits = (mix * self.gates[2].float() + base[2 * n :]).unflatten(-1, (n, n))
        return sinkhorn(logits, self.iterations), weights


class MhcHead(torch.nn.Module):
    """Streams [s, n b, h] -> [s, b, h], read with weights as a block does."""

    def __init__(self, config: TransformerConfig, streams: int) -> None:
        super().__init__()
        self.config, self.streams, dtype = config, streams, config.params_dtype
        self.weight = torch.nn.Parameter(torch.empty(streams, streams * config.hidden_size, dtype=dtype))
        self.base = torch.nn.Parameter(torch.empty(streams, dtype=dtype))
        self.gates = torch.nn.Parameter(torch.empty(1, dtype=dtype))
        own(self, config)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start values; called again where weights are made on the meta device first."""
        with torch.no_grad():
            self.config.init_method(self.weight)
            self.base.copy_(_Start.reading(self.streams))
            self.gates.fill_(_GATE)

    def forward(self, x: Tensor) -> Tensor:
        streams = apart(x, self.streams)
        logits = projected(streams, self.weight, self.config.layernorm_epsilon) * self.gates.float()
        weights = torch.sigmoid(logits + self.base.float()) + _EPS
        return torch.einsum("sbn,sbnh->sbh", weights.to(streams.dtype), streams)


def mhc_overlay(
    submodules: TransformerLayerSubmodules, config: TransformerConfig, norms: Norms, options: MhcOptions
) -> TransformerLayerSubmodules:
    """Norms that read, joins that mix."""
    return stream_overlay(
        submodules, config, norms, MhcJoin, streams=options.mhc_streams, iterations=options.mhc_iterations
    )


def _final(norm: NormBuilder, options: MhcOptions) -> NormBuilder:
    """The norm of what is read of the streams."""

    def build(config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> torch.nn.Module:
        return Collapsed(MhcHead(config, options.mhc_streams), norm(config, hidden_size, eps))

    return build


def _check(options: MhcOptions, _layers: int | None) -> None:
    check_streams("--mhc-streams", options.mhc_streams)
    if not 1 <= options.mhc_iterations <= 100:
        raise UserError(f"--mhc-iterations {options.mhc_iterations} must be at least 1 and at most 100")


def _head_parameters(hidden: int, options: MhcOptions) -> int:
    return options.mhc_streams * (options.mhc_streams * hidden + 1) + 1


def _join_parameters(hidden: int, options: MhcOptions) -> int:
    rows = options.mhc_streams * (options.mhc_streams + 2)
    return rows * (options.mhc_streams * hidden + 1) + 3


MHC = Scheme(
    name="mhc",
    block="A^T H + b F(N(a H)) for n streams H; A doubly stochastic, all dependent on H",
    reference="Xie et al., arXiv 2512.24880",
    default_init="normal",
    options=MhcOptions,
    overlay=mhc_overlay,
    bind=bind_streams,
    final=_final,
    streams=lambda options: options.mhc_streams,
    check=_check,
    layer_parameters=lambda hidden, _norm, options: 2 * _join_parameters(hidden, options),
    final_parameters=_head_parameters,
    unsupported=unsupported_with_streams,
    stock=NotFoldable("it has several residual streams"),
    one_graph=False,
)
