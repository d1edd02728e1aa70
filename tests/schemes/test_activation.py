"""--geglu: the gate of Megatron's MLP, what a checkpoint records of it, and where it is refused."""

import pytest
import torch
from torch.nn import functional as F

from megatron_cod.errors import UserError
from megatron_cod.schemes.activation import GELU_TANH, gate_with_gelu, gelu_tanh


def test_it_is_the_tanh_form():
    x = torch.linspace(-4, 4, 1001, dtype=torch.float64)
    formula = 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    assert (gelu_tanh(x) - formula).abs().max() < 1e-12
    assert (gelu_tanh(x) - F.gelu(x)).abs().max() > 1e-4


def config(**changes):
    from megatron.core.transformer.transformer_config import TransformerConfig

    same = {"num_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "gated_linear_unit": True}
    return TransformerConfig(**{**same, "activation_func": F.silu, "bias_activation_fusion": True, **changes})


def test_the_record_has_its_name_and_no_fusion_is_left():
    from megatron_cod.checkpoint.function_record import _plain

    changed = config()
    gate_with_gelu(changed)
    assert _plain(changed.activation_func) == GELU_TANH and not changed.bias_activation_fusion


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"gated_linear_unit": False, "activation_func": F.gelu, "bias_activation_fusion": False},
            "--swiglu; give both",
        ),
        (
            {"use_transformer_engine_op_fuser": True, "bias_activation_fusion": False},
            "--use-transformer-engine-op-fuser",
        ),
    ],
)
def test_rejects_what_has_no_such_gate(changes, said):
    made = config(**changes)
    with pytest.raises(UserError, match=said):
        gate_with_gelu(made)


def test_an_import_is_not_loaded_with_another_gate(tmp_path):
    from argparse import Namespace

    from megatron_cod.checkpoint.function_record import differences
    from megatron_cod.huggingface.families.table import architecture_of
    from megatron_cod.huggingface.recipe import namespace_of, recipe_of
    from tests.huggingface.models import BASE

    arch, _ = architecture_of({**BASE, "model_type": "gemma", "hidden_act": "gelu_pytorch_tanh"})
    saved = namespace_of(recipe_of(arch))
    assert saved.geglu and not differences(saved, saved)
    asked = Namespace(**{**vars(saved), "geglu": False})
    assert [str(one) for one in differences(saved, asked)] == ["--swiglu (activation_func) geglu, this run has silu"]
