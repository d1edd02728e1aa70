"""Two residual streams: a block reads their mean, and adds its branches to both. Computes what Pre-LN computes."""

import torch
from megatron.core.transformer.transformer_layer import TransformerLayer

from megatron_cod.schemes.depth import global_layer_number
from megatron_cod.schemes.design import Numbered
from megatron_cod.schemes.row import NotFoldable, Scheme
from megatron_cod.schemes.table import register_scheme

STREAMS = 2


class TwoStreamLayer(Numbered, TransformerLayer):
    """[s, 2 b, h] -> [s, 2 b, h], the streams of a sample side by side; the first takes, the last gives [s, b, h]."""

    def forward(self, hidden_states, *args, **kwargs):
        number = global_layer_number(self)
        streams = hidden_states.repeat_interleave(STREAMS, dim=1) if number == 1 else hidden_states
        read = _mean(streams)
        output, context = super().forward(read, *args, **kwargs)
        # Not the same numbers in both, so that one of them lost on the way is seen.
        weights = torch.tensor([0.5, 1.5], dtype=read.dtype, device=read.device).view(1, 1, STREAMS, 1)
        written = (output - read).unsqueeze(2) * weights
        streams = streams + written.flatten(1, 2)
        return (_mean(streams) if number == self.config.num_layers else streams), context


def _mean(streams):
    """[s, 2 b, h] -> [s, b, h]"""
    return streams.unflatten(1, (-1, STREAMS)).mean(dim=2)


register_scheme(
    Scheme(
        name="two_streams",
        block="x_i + c_i F(N(mean of x))",
        reference="a test",
        default_init="normal",
        layer={TransformerLayer: TwoStreamLayer},
        streams=lambda options: STREAMS,
        stock=NotFoldable("two streams"),
    )
)
