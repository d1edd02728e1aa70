"""SDPA core attention against Megatron's own unfused one: fp32 within 1e-5, outputs and gradients."""

import pytest
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.enums import AttnBackend, AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_cod.backends.torch_attention import SDPACoreAttention

S, B, HEADS, D = 24, 2, 4, 16
pytestmark = pytest.mark.usefixtures("one_process")


def build(cls, groups=HEADS, **changes):
    config = TransformerConfig(
        num_layers=2,
        hidden_size=HEADS * D,
        num_attention_heads=HEADS,
        num_query_groups=groups,
        attention_dropout=0.0,
        masked_softmax_fusion=False,
        **changes,
    )
    return cls(config=config, layer_number=1, attn_mask_type=AttnMaskType.causal, attention_type="self")


def inputs(groups):
    torch.manual_seed(3)
    return [torch.randn(S, B, n, D, requires_grad=True) for n in (HEADS, groups, groups)]


def document_mask():
    """Causal, and a second document from position 10 on; True is forbidden."""
    position = torch.arange(S)
    allowed = (position[:, None] >= position[None]) & ((position[:, None] >= 10) == (position[None] >= 10))
    return ~allowed[None, None].expand(B, 1, S, S)


@pytest.mark.parametrize("groups", [HEADS, 2, 1])
@pytest.mark.parametrize("mask", [None, "documents"])
def test_equals_megatrons_unfused_attention(groups, mask):
    mask = None if mask is None else document_mask()
    outcomes = []
    for cls in (SDPACoreAttention, DotProductAttention):
        qkv = inputs(groups)
        out = build(cls, groups)(*qkv, attention_mask=mask)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        outcomes.append([out.detach(), *(tensor.grad for tensor in qkv)])
    assert outcomes[0][0].shape == (S, B, HEADS * D)
    for ours, theirs in zip(*outcomes, strict=True):
        assert (ours - theirs).abs().max() <= 1e-5


def test_attention_is_causal():
    q, k, v = inputs(HEADS)
    attention = build(SDPACoreAttention)
    first = attention(q, k, v, None)[: S // 2]
    changed = v.detach().clone()
    changed[S // 2 :] = 9.0
    assert torch.equal(first, attention(q, k, changed, None)[: S // 2])


def test_dropout_acts_in_training_only():
    attention = build(SDPACoreAttention)
    attention.dropout = 0.5
    qkv = inputs(HEADS)
    attention.eval()
    assert torch.equal(attention(*qkv, attention_mask=None), attention(*qkv, attention_mask=None))
    attention.train()
    assert not torch.equal(attention(*qkv, attention_mask=None), attention(*qkv, attention_mask=None))


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"window_size": (4, 0)}, "--window-size"),
        ({"context_parallel_size": 2, "cp_comm_type": "a2a"}, "--cp-comm-type a2a"),
        ({"context_parallel_size": 2, "cp_comm_type": ["p2p", "a2a+p2p"]}, r"--cp-comm-type a2a\+p2p"),
        ({"context_parallel_size": 2, "attention_backend": AttnBackend.unfused}, "--attention-backend unfused"),
        ({"context_parallel_size": 2, "hierarchical_context_parallel_sizes": [2]}, "--hierarchical-context"),
    ],
)
def test_rejects_unsupported_arguments(changes, flag):
    with pytest.raises(ValueError, match=flag):
        build(SDPACoreAttention, **changes)


@pytest.mark.parametrize("groups", [HEADS, 2])
def test_packed_samples_equal_masked_samples(groups):
    """The ``thd`` format against Megatron's unfused attention with a mask between the samples, gradients too."""
    ends = torch.tensor([0, 10, 24], dtype=torch.int32)
    samples = PackedSeqParams(
        qkv_format="thd", cu_seqlens_q=ends, cu_seqlens_kv=ends, max_seqlen_q=14, max_seqlen_kv=14
    )
    outcomes = []
    for cls in (SDPACoreAttention, DotProductAttention):
        qkv = [tensor[:, :1].detach().requires_grad_() for tensor in inputs(groups)]
        if cls is SDPACoreAttention:
            out = build(cls, groups)(*(t.squeeze(1) for t in qkv), attention_mask=None, packed_seq_params=samples)
            assert out.shape == (S, HEADS * D)
        else:
            out = build(cls, groups)(*qkv, attention_mask=document_mask()[:1]).squeeze(1)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        outcomes.append([out.detach(), *(tensor.grad for tensor in qkv)])
    for ours, theirs in zip(*outcomes, strict=True):
        assert (ours - theirs).abs().max() <= 1e-5
