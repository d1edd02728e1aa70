"""Which parts of an architecture a family's stock model has: every field counts, and none is passed over."""

from dataclasses import fields, replace

import pytest

from megatron_cod.errors import UserError
from megatron_cod.huggingface.families.architecture import Architecture, Experts, Latent, Rope
from megatron_cod.huggingface.families.table import FAMILIES, architecture_of, choose_family, config_of
from megatron_cod.huggingface.importing import ImportJob, import_model
from tests.huggingface.models import BASE, make_model

PLAIN = Architecture("llama", 4, 32, 48, 4, 2, 8, 128, 128, 1e-6, 128)
SIZES = {
    "family",
    "layers",
    "hidden",
    "ffn",
    "heads",
    "groups",
    "head_dim",
    "vocab",
    "padded_vocab",
    "eps",
    "positions",
}
"""Any model may have any, and all stock models may tie their head; multipliers go into weights; a model's own logits do
not read prediction layers."""
FREE_FIELDS = SIZES | {"tied", "multipliers", "predicted"}
OTHERS = {
    "qkv_bias": True,
    "linear_bias": True,
    "qk_norm": True,
    "unrotated": (2,),
    "branch_norms": True,
    "activation": "gelu_tanh",
    "latent": Latent(16, 8, 8, 12),
    "experts": Experts(4, 2, 24),
}
ROPES = {"kind": "yarn", "share": 0.5}
OF_A_KIND = {"factor", "mscale", "mscale_all_dim", "original", "beta_fast", "beta_slow", "truncate", "theta"}


def test_every_field_is_a_size_or_a_feature():
    """A field that is added fails here until it counts: else each family would be taken to compute it."""
    assert {field.name for field in fields(Architecture)} == FREE_FIELDS | OTHERS.keys() | {"rope"}
    assert {field.name for field in fields(Rope)} == OF_A_KIND | ROPES.keys()
    assert not PLAIN.features()
    for name, value in OTHERS.items():
        assert replace(PLAIN, **{name: value}).features(), name
    for name, value in ROPES.items():
        assert replace(PLAIN, rope=replace(Rope(), **{name: value})).features(), name


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_computes_no_model_with_an_unknown_part(name, monkeypatch):
    family = FAMILIES[name]
    for added in (frozenset(), frozenset({"a part of tomorrow"})):
        monkeypatch.setattr(Architecture, "features", lambda _, added=added: family.needs | added)
        assert replace(family, fits=lambda _: True).expresses(PLAIN) == (not added)


def test_norms_behind_branches_with_experts_are_in_no_family():
    model = replace(PLAIN, branch_norms=True, experts=Experts(4, 2, 24))
    with pytest.raises(
        UserError, match=r"no stock architecture computes this model \(experts, norms behind the branches"
    ):
        choose_family(model)
    assert choose_family(replace(PLAIN, branch_norms=True)).name == "glm4"


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_a_written_config_is_read_as_the_same_architecture(share):
    model = replace(PLAIN, family="glm4", branch_norms=True, rope=Rope(share=share))
    assert architecture_of(config_of(model))[0] == model


@pytest.mark.parametrize(
    ("share", "rope", "said"),
    [
        (0.1, {}, "partial_rotary_factor 0.1: 1 of 16"),
        (0.5, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, "yarn turns whole heads"),
    ],
)
def test_rejects_a_part_of_a_head_that_megatron_does_not_turn(share, rope, said):
    config = {**BASE, "model_type": "glm4", "head_dim": 16, "partial_rotary_factor": share, "rope_scaling": rope}
    with pytest.raises(UserError, match=said):
        architecture_of(config)


@pytest.mark.parametrize("name", ["glm4", "gemma3"])
def test_a_model_with_norms_behind_branches_is_of_sandwich_ln_alone(tmp_path, name):
    folder = make_model(name, tmp_path / "hf")
    for options, said in (
        ({"as_scheme": "lns"}, "can be trained on as sandwich_ln"),
        ({"unfolded_lns": True}, "no LNS"),
    ):
        with pytest.raises(UserError, match=said):
            import_model(ImportJob(folder, tmp_path / "out", **options))
    assert import_model(ImportJob(folder, tmp_path / "out", as_scheme="sandwich_ln")).scheme.is_stock
    with pytest.raises(UserError, match="trained on as pre_ln"):
        import_model(ImportJob(make_model("llama", tmp_path / "llama"), tmp_path / "no", as_scheme="sandwich_ln"))
