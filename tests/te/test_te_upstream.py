"""What our Transformer Engine backend relies on upstream. When one of these fails, read the code before a release."""

import inspect

import pytest

pytest.importorskip("transformer_engine", reason="Transformer Engine is not installed, nor emulated")

from megatron.core.extensions import transformer_engine as megatron_te
from megatron.core.extensions import transformer_engine_spec_provider as provider
from megatron.core.models.gpt import gpt_layer_specs
from megatron.core.transformer import multi_latent_attention
from transformer_engine.pytorch import LayerNorm, LayerNormLinear, RMSNorm, ops
from transformer_engine.pytorch.ops import fuser
from transformer_engine.pytorch.ops.fused import BackwardAddRMSNorm


def parameters(function) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_the_fused_linear_reads_gamma_once():
    source = inspect.getsource(LayerNormLinear.forward)
    assert source.count("self.layer_norm_weight") == source.count("self.layer_norm_bias") == 1
    assert source.count("self.zero_centered_gamma") == 1
    assert parameters(megatron_te.TELayerNormColumnParallelLinear.forward) == ["self", "x"]


def test_norms_are_operations_that_read_gamma_in_both_directions():
    expected = ["self", "ctx", "input_", "prev_op_grad_output_quantizer", "next_op_input_quantizer"]
    for cls, op in ((RMSNorm, ops.RMSNorm), (LayerNorm, ops.LayerNorm)):
        assert issubclass(cls, op)
        assert parameters(op.op_forward) == expected
        assert parameters(op.op_backward) == ["self", "ctx", "grad_output"]
        for method in (op.op_forward, op.op_backward):
            assert "self.weight" in inspect.getsource(method)


def test_fused_backward_accepts_our_arguments():
    assert parameters(BackwardAddRMSNorm.fuser_backward) == [
        *("self", "basic_op_ctxs", "grad_output"),
        "basic_op_grad_extra_outputs",
    ]
    assert "rmsnorm_op = self.basic_ops[1]" in inspect.getsource(BackwardAddRMSNorm.fuser_backward)
    assert "prepend" in parameters(ops.register_backward_fusion)
    assert isinstance(fuser.OperationFuser.backward_fusion_functions, list)


def test_megatron_builds_the_chains_we_change():
    residual = inspect.getsource(megatron_te.TEFusedResidualRMSNorm._make_fused_impl)
    assert "MakeExtraOutput" in residual and "ops.RMSNorm" in residual
    assert "self._norm_seq = (norm_seq,)" in inspect.getsource(megatron_te.TEFusedMLPWithGroupedLinear._make_fused_impl)
    assert "layer_norm_weight" in inspect.getsource(megatron_te.TEFusedMLP._make_fused_impl)


def test_megatrons_specs_name_the_modules_we_replace():
    spec = inspect.getsource(gpt_layer_specs.get_gpt_layer_with_transformer_engine_submodules)
    assert "linear_qkv=backend.column_parallel_layer_norm_linear()" in spec
    assert provider._TENormWithResidual.__name__ == "_TENormWithResidual"
    fused = inspect.getsource(multi_latent_attention.FusedMLASelfAttention.__init__)
    assert "submodules.linear_qkv_down_proj in [" in fused  # by exact class: why its norm stands before it under LNS
