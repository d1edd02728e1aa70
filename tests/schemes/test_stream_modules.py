"""Modules of hyper_connections and mhc: start values, transformers' class, doubly stochastic matrices."""

from types import SimpleNamespace

import pytest
import torch

from megatron_cod.schemes import mhc
from megatron_cod.schemes.hyper_connections import HyperJoin
from megatron_cod.schemes.mhc import MhcHead, MhcJoin, sinkhorn


def config(hidden: int = 32, dtype: torch.dtype = torch.float32) -> SimpleNamespace:
    init = lambda weight: torch.nn.init.normal_(weight, std=0.02)  # noqa: E731
    return SimpleNamespace(
        hidden_size=hidden, params_dtype=dtype, sequence_parallel=False, layernorm_epsilon=1e-6, init_method=init
    )


def drawn(module: torch.nn.Module) -> torch.nn.Module:
    """With random parameters."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module


def streams_of(batch: int, streams: int, hidden: int = 32) -> torch.Tensor:
    """[s, n b, h]"""
    return torch.randn(6, batch * streams, hidden, generator=torch.Generator().manual_seed(6))


def deepseek() -> SimpleNamespace:
    return SimpleNamespace(hc_mult=4, hc_sinkhorn_iters=20, hc_eps=1e-6, rms_norm_eps=1e-6, hidden_size=32)


def test_equals_the_class_of_transformers():
    from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4HyperConnection

    ours, theirs = drawn(MhcJoin(config(), 4, 20)), DeepseekV4HyperConnection(deepseek())
    with torch.no_grad():
        for name, parameter in (("fn", ours.weight), ("base", ours.base), ("scale", ours.gates)):
            getattr(theirs, name).copy_(parameter)
        streams, branch = streams_of(2, 4), streams_of(2, 1)
        apart = streams.unflatten(1, (2, 4)).transpose(0, 1)  # [b, s, n, h]
        post, comb, collapsed = theirs(apart)
        assert (ours.read(streams).transpose(0, 1) - collapsed).abs().max() <= 1e-6
        expected = post.unsqueeze(-1) * branch.transpose(0, 1).unsqueeze(2) + comb.transpose(-1, -2) @ apart
        found = ours.combined(streams, branch).unflatten(1, (2, 4)).transpose(0, 1)
    assert (found - expected).abs().max() <= 1e-6


def test_the_head_equals_that_of_transformers():
    from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4HyperHead

    ours, theirs = drawn(MhcHead(config(), 4)), DeepseekV4HyperHead(deepseek())
    with torch.no_grad():
        for name, parameter in (("hc_fn", ours.weight), ("hc_base", ours.base), ("hc_scale", ours.gates)):
            getattr(theirs, name).copy_(parameter)
        streams = streams_of(2, 4)
        expected = theirs(streams.unflatten(1, (2, 4)).transpose(0, 1))
        assert (ours(streams).transpose(0, 1) - expected).abs().max() <= 1e-6


def test_mixing_is_doubly_stochastic():
    noise = torch.randn(4096, 4, 4, generator=torch.Generator().manual_seed(1))
    logits = mhc._IDENTITY * torch.eye(4) + 0.5 * noise
    found = sinkhorn(logits, 20)
    assert (found > 0).all()
    assert (found.sum(-1) - 1).abs().max() <= 1e-5 and (found.sum(-2) - 1).abs().max() <= 1e-5


def test_the_start_of_the_mixing_has_a_gradient():
    """Biases 16 apart, which others start with, make Sinkhorn a permutation whose gradient is rounding."""

    def gradient(diagonal: float) -> float:
        logits = (diagonal * torch.eye(4)).requires_grad_()
        (sinkhorn(logits, 20) * torch.randn(4, 4, generator=torch.Generator().manual_seed(2))).sum().backward()
        return float(logits.grad.abs().max())

    assert gradient(mhc._IDENTITY) > 1e-2 > 1e-5 > gradient(16.0)


def test_a_block_reads_one_stream_in_turn():
    join = HyperJoin(config(), 4, dynamic=True)
    for sublayer, read in ((0, 0), (1, 1), (6, 2)):
        join.start(sublayer)
        table = join.static.detach().view(4, 6)
        assert table[:, 0].tolist() == [float(one == read) for one in range(4)]
        assert (table[:, 1] == 1).all() and torch.equal(table[:, 2:], torch.eye(4))
    assert not join.weight.any() and join.gates.tolist() == pytest.approx([0.01, 0.01])


def without_the_last_columns() -> None:
    """The mutant: Sinkhorn ends with its rows."""

    def short(logits, iterations):
        found = sinkhorn(logits, iterations - 1)
        return found / (found.sum(dim=-1, keepdim=True) + 1e-6)

    mhc.sinkhorn = short


def test_sinkhorn_without_its_last_normalisation_is_caught(monkeypatch):
    monkeypatch.setattr(mhc, "sinkhorn", mhc.sinkhorn)
    without_the_last_columns()
    with pytest.raises(AssertionError):
        test_equals_the_class_of_transformers()
