"""FP8 and FP4 are refused, in one line, where they would fail in the first forward or silently not happen."""

from types import SimpleNamespace

import pytest
from megatron.core.enums import Fp4Recipe, Fp8Recipe

from megatron_cod.training.flags import low_precision
from megatron_cod.training.flags.low_precision import SUPPORT, check_low_precision


def given(**values) -> SimpleNamespace:
    plain = {
        "fp8": None,
        "fp4": None,
        "fp8_recipe": "delayed",
        "fp4_recipe": "nvfp4",
        "transformer_impl": "local",
        "use_grouped_gemm_for_dense_mlp": False,
        "hidden_size": 64,
        "ffn_hidden_size": 128,
        "kv_channels": 16,
        "num_attention_heads": 4,
        "tensor_model_parallel_size": 1,
        "context_parallel_size": 1,
        "num_experts": None,
        "multi_latent_attention": False,
        "seq_length": 64,
        "micro_batch_size": 1,
        "sequence_parallel": False,
        "save": None,
        "load": None,
    }
    return SimpleNamespace(**plain | values)


@pytest.fixture
def on_transformer_engine(monkeypatch):
    """Layers and a device that have every recipe."""
    monkeypatch.setattr(low_precision, "have_transformer_engine", lambda: True)
    asked = []
    monkeypatch.setattr(low_precision, "_check_device", lambda *words: asked.append(words))
    return asked


def test_every_recipe_of_megatron_is_classified():
    assert SUPPORT.keys() == {one.value for kind in (Fp8Recipe, Fp4Recipe) for one in kind} - {"custom"}


@pytest.mark.parametrize(("name", "value"), [("fp8", "hybrid"), ("fp8", "e4m3"), ("fp4", "e2m1")])
def test_other_layers_than_transformer_engines_are_refused(name, value):
    with pytest.raises(ValueError, match=rf"^--{name}-format needs Transformer Engine's layers"):
        check_low_precision(given(**{name: value}))


def test_rejects_recipes_that_the_device_lacks(on_transformer_engine):
    te = {"transformer_impl": "transformer_engine"}
    check_low_precision(given(fp8="hybrid", fp8_recipe="blockwise", **te))
    check_low_precision(given(fp4="e2m1", **te))
    check_low_precision(given(fp8="hybrid", fp8_recipe="custom", **te))
    check_low_precision(given(use_grouped_gemm_for_dense_mlp=True, **te))
    assert on_transformer_engine == [
        ("--fp8-recipe blockwise", "is_fp8_block_scaling_available"),
        ("--fp4-recipe nvfp4", "is_nvfp4_available"),
        ("--use-grouped-gemm-for-dense-mlp", "is_mxfp8_available"),
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_size": 72}, "--hidden-size 72 is none"),
        ({"ffn_hidden_size": 136}, "--ffn-hidden-size 136 is none"),
        ({"ffn_hidden_size": 144, "tensor_model_parallel_size": 2}, "--ffn-hidden-size 144 over 2 ranks is none"),
        ({"kv_channels": 10}, "channels of a head, 40 is none"),
        ({"num_experts": 2, "moe_ffn_hidden_size": 24, "expert_tensor_parallel_size": 1}, "--moe-ffn-hidden-size 24"),
        ({"seq_length": 60}, "multiples of 8 tokens: a rank has 60"),
        ({"seq_length": 8, "context_parallel_size": 2}, "multiples of 8 tokens: a rank has 4"),
    ],
)
def test_refuses_sizes_that_the_products_do_not_take(on_transformer_engine, values, message):
    te = {"fp8": "hybrid", "transformer_impl": "transformer_engine"}
    check_low_precision(given(**te))
    with pytest.raises(ValueError, match=message):
        check_low_precision(given(**te, **values))
    check_low_precision(given(**te | {"fp8": None}, **values))


@pytest.mark.parametrize("flag", ["save", "load"])
def test_checkpoints_of_delayed_scaling_need_leave_to_be_loaded(on_transformer_engine, monkeypatch, flag):
    te = {"fp8": "hybrid", "transformer_impl": "transformer_engine", flag: "runs/a"}
    monkeypatch.delenv(low_precision.UNPICKLES, raising=False)
    with pytest.raises(ValueError, match=rf"set {low_precision.UNPICKLES}=1 .* or take --fp8-recipe tensorwise"):
        check_low_precision(given(**te))
    check_low_precision(given(**te, fp8_recipe="tensorwise"))
    monkeypatch.setenv(low_precision.UNPICKLES, "1")
    check_low_precision(given(**te))
