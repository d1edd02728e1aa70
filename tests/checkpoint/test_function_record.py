"""The record of what a model computes: every field of Megatron's configuration is classified, every difference is found."""

from argparse import Namespace
from dataclasses import fields
from pathlib import Path

import pytest

from megatron_cod.checkpoint import function_record
from megatron_cod.checkpoint.function_fields import FUNCTION, MAY_DIFFER, TENSORS, WITHOUT_FLAG, YARN
from megatron_cod.checkpoint.function_record import RECORD, check_function, differences, record_of
from megatron_cod.errors import UserError
from megatron_cod.model import SchemeModelConfig, model_config_from_args
from megatron_cod.schemes.table import SCHEMES
from megatron_cod.training import before_megatron  # noqa: F401
from megatron_cod.training.flags.parser import build_parser
from megatron_cod.training.pretraining import TASK
from megatron_cod.training.start.prepare import prepare
from tests.rehearsal.jobs import SMALL

# isort: split
from megatron.core.quantization.quant_config import GlobMatcher, RecipeConfig
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig

FREE = [name for names in MAY_DIFFER.values() for name in names.split()]


def test_every_field_of_megatrons_configuration_is_classified():
    """A new one fails here, and is compared until it is classified."""
    known = {one.name for kind in (TransformerConfig, MLATransformerConfig, SchemeModelConfig) for one in fields(kind)}
    known |= YARN | {"has_cond_embedder"}  # of no class: shared gains set it
    classified = [*TENSORS, *FUNCTION, *FREE]
    assert len(classified) == len(set(classified)), "in two classes"
    assert known - set(classified) == set()
    assert set(classified) - known == set(), "fields that Megatron no longer has"


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--position-embedding-type", "yarn"],
        ["--position-embedding-type", "none"],
        ["--multi-latent-attention", "--qk-layernorm"],
        ["--num-experts", "4"],
        ["--use-mup", "--mup-base-hidden-size", "16"],
        ["--mtp-num-layers", "1"],
        *(["--norm-scheme", scheme] for scheme in SCHEMES),
    ],
    ids=" ".join,
)
def test_everything_that_the_built_configuration_holds_is_classified(flags):
    """Megatron gives some values to the object that its class does not have."""
    config, _ = model_config_from_args(arguments(*flags))
    held = {*vars(config), *vars(config.transformer)}
    assert held - TENSORS - FUNCTION - set(FREE) == set()
    assert (held >= YARN) == ("yarn" in flags)


CHANGES = {
    "layernorm_epsilon": ["--norm-epsilon", "1e-2"],
    "layernorm_zero_centered_gamma": ["--apply-layernorm-1p"],
    "rotary_base": ["--rotary-base", "500000"],
    "rotary_percent": ["--rotary-percent", "0.5"],
    "rotary_interleaved": ["--rotary-interleaved"],
    "seq_len_interpolation_factor": ["--rotary-seq-len-interpolation-factor", "2"],
    "rope_scaling": ["--use-rope-scaling"],
    "rope_scaling_factor": ["--use-rope-scaling", "--rope-scaling-factor", "4"],
    "no_rope_freq": ["--no-rope-freq", "2"],
    "qk_l2_norm": ["--qk-l2-norm"],
    "mup_output_mult": ["--use-mup", "--mup-base-hidden-size", "16"],
    "softmax_scale": ["--use-mup", "--mup-base-hidden-size", "16"],
    "glu_linear_offset": ["--glu-linear-offset", "1.0"],
    "activation_func_clamp_value": ["--activation-func-clamp-value", "7"],
}
"""A field -> flags after SMALL that change it, and no tensor."""
RESHAPED = {
    "share_embeddings_and_output_weights": ["--unset", "untie-embeddings-and-output-weights"],
    "num_query_groups": ["--group-query-attention", "--num-query-groups", "2"],
    "qk_layernorm": ["--qk-layernorm"],
    "add_qkv_bias": ["--add-qkv-bias"],
    "kv_channels": ["--kv-channels", "16"],
    "normalization": ["--normalization", "LayerNorm"],
    "num_moe_experts": ["--num-experts", "4"],
    "position_embedding_type": ["--position-embedding-type", "none"],
}
YARN_CHANGES = {
    "yarn_rotary_scaling_factor": ["--rotary-scaling-factor", "8"],
    "yarn_original_max_position_embeddings": ["--yarn-original-max-position-embeddings", "16"],
    "yarn_beta_fast": ["--yarn-beta-fast", "8"],
    "yarn_beta_slow": ["--yarn-beta-slow", "2"],
    "yarn_mscale": ["--mscale", "0.5"],
    "yarn_mscale_all_dim": ["--mscale-all-dim", "0.5"],
    "yarn_correction_range_round_to_int": ["--no-yarn-correction-range-round-to-int"],
}
"""The same of a model with YaRN."""
UNCHANGED = {
    "layout": ["--pipeline-model-parallel-size", "2"],
    "recomputation": [
        "--recompute-granularity",
        "full",
        "--recompute-method",
        "uniform",
        "--recompute-num-layers",
        "1",
    ],
    "dropout": ["--attention-dropout", "0.1"],
    "precision": ["--bf16"],
    "initialisation": ["--init-method-std", "0.5"],
}


def arguments(*flags: str) -> Namespace:
    return prepare([*SMALL, *flags], TASK, 2, frozenset(), set_globals=False, quiet=True).args


@pytest.fixture(scope="module")
def saved() -> Namespace:
    return arguments()


@pytest.mark.parametrize("name", CHANGES)
def test_another_function_of_the_same_tensors_is_refused(name, saved):
    args = arguments(*CHANGES[name])
    found = {one.field for one in differences(saved, args)}
    assert name in found and not found & TENSORS
    with pytest.raises(UserError, match="--override-model-check") as refused:
        check_function(Path("iter_8"), saved, args, False)
    assert CHANGES[name][0] in str(refused.value)
    assert check_function(Path("iter_8"), saved, args, True)[0].startswith("WARNING")


@pytest.mark.parametrize("name", sorted(YARN))
def test_another_yarn_is_refused(name):
    yarn = ["--position-embedding-type", "yarn", "--rotary-scaling-factor", "4"]
    saved, args = arguments(*yarn), arguments(*yarn, *YARN_CHANGES[name])
    assert [one.field for one in differences(saved, args)] == [name]
    with pytest.raises(UserError, match="--override-model-check") as refused:
        check_function(Path("iter_8"), saved, args, False)
    assert YARN_CHANGES[name][0].replace("--no-", "--") in str(refused.value)


@pytest.mark.parametrize("name", RESHAPED)
def test_tensors_that_do_not_fit_are_refused_whatever_is_overridden(name, saved):
    args = arguments(*RESHAPED[name])
    assert name in {one.field for one in differences(saved, args)}
    for override in (False, True):
        with pytest.raises(UserError, match="its tensors do not fit") as refused:
            check_function(Path("iter_8"), saved, args, override)
        assert function_record.flag_of(name) in str(refused.value) and "corrupt" not in str(refused.value)


@pytest.mark.parametrize("name", sorted(TENSORS | FUNCTION))
def test_every_recorded_field_is_compared_and_named(name, saved):
    other = Namespace(**{RECORD: {**getattr(saved, RECORD), name: "another"}})
    asked = Namespace(**{RECORD: {name: None, **getattr(saved, RECORD)}})
    found = differences(other, asked)
    assert [one.field for one in found] == [name]
    flags = {flag for action in build_parser()._actions for flag in action.option_strings}
    assert found[0].flag in flags or name in WITHOUT_FLAG


@pytest.mark.parametrize("name", UNCHANGED)
def test_ignores_fields_that_may_differ(name, saved):
    assert differences(saved, arguments(*UNCHANGED[name])) == []


def _without_record(args: Namespace) -> Namespace:
    found = Namespace(**vars(args))
    delattr(found, RECORD)
    return found


@pytest.mark.parametrize("name", [name for name in (*CHANGES, *RESHAPED) if name != "softmax_scale"])
def test_a_checkpoint_without_a_record_is_compared_by_its_arguments(name, saved):
    args = arguments(*(CHANGES | RESHAPED)[name])
    assert differences(_without_record(saved), args)
    assert not differences(_without_record(args), args)


def test_an_import_with_all_biases_is_one_with_biases_of_queries(saved):
    """Megatron's validation says so, which an imported checkpoint's arguments did not pass."""
    biased = _without_record(arguments("--unset", "disable-bias-linear"))
    assert biased.add_bias_linear and biased.add_qkv_bias
    biased.add_qkv_bias = False
    assert differences(biased, arguments("--unset", "disable-bias-linear")) == []
    assert {one.field for one in differences(biased, saved)} == {"add_bias_linear", "add_qkv_bias"}


def test_a_field_that_is_not_classified_is_compared(saved, monkeypatch):
    monkeypatch.setattr(function_record, "FUNCTION", FUNCTION - {"rotary_base"})
    assert [one.field for one in differences(saved, arguments("--rotary-base", "7"))] == ["rotary_base"]


def test_the_record_needs_nothing_of_megatron_to_be_read(saved):
    def plain(value) -> bool:
        return (
            value is None or type(value) in (bool, int, float, str) or (type(value) is list and all(map(plain, value)))
        )

    record = getattr(saved, RECORD)
    assert len(record) > 60 and all(plain(value) for value in record.values())
    assert record["activation_func"] == "silu"
    assert callable(record_of)


def quantized(config: dict, *patterns: str) -> Namespace:
    recipe = RecipeConfig([GlobMatcher(pattern, "a") for pattern in patterns], {"a": config})
    return Namespace(**{RECORD: {"quant_recipe": function_record._plain(recipe)}})


@pytest.mark.parametrize(
    ("other", "place"),
    [
        (quantized({"fp8": "e5m2"}, "*fc1*"), "configs.a.fp8: e5m2, this run has hybrid"),
        (quantized({"fp8": "hybrid"}, "*fc2*"), r"matchers.0.pattern: \*fc2\*, this run has \*fc1\*"),
        (quantized({"fp8": "hybrid"}, "*fc1*", "*"), "quant_recipe"),
    ],
)
def test_objects_are_compared_by_their_content(other, place):
    asked = quantized({"fp8": "hybrid"}, "*fc1*")
    assert differences(quantized({"fp8": "hybrid"}, "*fc1*"), asked) == []
    with pytest.raises(UserError, match=place):
        check_function(Path("iter_8"), other, asked, False)


def test_earlier_records_of_objects_have_their_class_alone():
    earlier = Namespace(**{RECORD: {"quant_recipe": "RecipeConfig"}})
    assert differences(earlier, quantized({"fp8": "hybrid"}, "*")) == []
    assert differences(Namespace(**{RECORD: {"quant_recipe": None}}), quantized({}, "*")) != []
