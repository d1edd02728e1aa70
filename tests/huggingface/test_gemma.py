"""Gemma: norms stored less 1, the embedding's scale, GeGLU; models that leave as one, and what is refused."""

import json
from dataclasses import fields

import pytest
import torch

from megatron_cod.errors import UserError
from megatron_cod.huggingface.export import ExportJob, export_model
from megatron_cod.huggingface.families.table import architecture_of
from megatron_cod.huggingface.folding import fold_less_one, unfold_less_one
from megatron_cod.huggingface.importing import ImportJob, import_model
from megatron_cod.schemes.depth import depth_factor
from tests.huggingface.megatron import ONE, megatron_logits
from tests.huggingface.models import make_model, same_tensors, tensors, tokens, transformers_logits


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def changed(tmp_path, name, **changes):
    source = make_model(name, tmp_path / "hf")
    (source / "config.json").write_text(json.dumps({**config_of(source), **changes}))
    return source


@pytest.mark.slow_except("gemma3")
@pytest.mark.parametrize("name", ["gemma", "gemma3"])
def test_bf16_comes_back_exactly(tmp_path, name):
    source = make_model(name, tmp_path / "hf", torch.bfloat16)
    import_model(ImportJob(source, tmp_path / "megatron"))
    export_model(ExportJob(tmp_path / "megatron", tmp_path / "back"))
    assert same_tensors(tensors(source), tensors(tmp_path / "back"))


def test_as_lns_gammas_come_back_to_their_last_places(tmp_path):
    source = make_model("gemma", tmp_path / "hf")
    import_model(ImportJob(source, tmp_path / "lns", as_scheme="lns"))
    export_model(ExportJob(tmp_path / "lns", tmp_path / "back"))
    before, after = tensors(source), tensors(tmp_path / "back")
    for name, tensor in before.items():
        assert torch.allclose(tensor, after[name], rtol=0, atol=3e-7 if "norm" in name else 0), name
    again = ImportJob(tmp_path / "back", tmp_path / "again", as_scheme="lns")
    assert not any("were changed since the export" in note for note in import_model(again).notes)


@pytest.mark.slow
def test_unfolded_gammas_less_one_are_imported_as_they_are(tmp_path):
    """--no-fold and back: verified against transformers' model with the factors on gamma, not on gamma less 1."""
    import_model(ImportJob(make_model("gemma", tmp_path / "hf"), tmp_path / "lns", as_scheme="lns"))
    export_model(ExportJob(tmp_path / "lns", tmp_path / "unfolded", fold=False))
    said: list[str] = []
    job = ImportJob(tmp_path / "unfolded", tmp_path / "back")
    found = import_model(job, said.append, lambda run, ids: megatron_logits(run, ONE, ids))
    assert found.scheme.scheme == "lns" and any(line.startswith("verified: transformers and Megatron") for line in said)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_lost_places_of_gammas_less_one_are_counted(dtype):
    folded = torch.linspace(-1.5, 1.5, 100_001).to(dtype)
    for layer in (2, 3, 7, 24):
        factor = depth_factor(layer)
        found, lost = unfold_less_one(folded, 1.0, factor)
        back = fold_less_one(found, factor, dtype)
        assert lost == int((back != folded).sum()) and (dtype == torch.float32 or lost < 50)
        assert (back.float() - folded.float()).abs().max() <= 2e-7


@pytest.mark.slow_except("gemma-glm4", "gemma-granite", "gemma2-granite", "gemma2-llama")
@pytest.mark.parametrize("name", ["glm4", "granite", "llama"])
@pytest.mark.parametrize("to", ["gemma", "gemma2"])
def test_a_model_without_its_terms_leaves_as_gemma_with_other_numbers(tmp_path, name, to):
    """The embedding over sqrt(h), and in a tied model the final norm times it; granite's own multipliers folded."""
    changes = {"attention_bias": False, "partial_rotary_factor": 1.0, "rope_parameters": None}
    source = changed(tmp_path, name, **(changes if name == "glm4" else {}))
    if name == "glm4":
        held = {key: value for key, value in tensors(source).items() if not key.endswith("bias")}
        from safetensors.torch import save_file

        save_file(held, source / "model.safetensors", metadata={"format": "pt"})
    fits = (name == "glm4") == (to == "gemma2")
    import_model(ImportJob(source, tmp_path / "megatron"))
    job = ExportJob(tmp_path / "megatron", tmp_path / "back", family=to)
    if not fits:
        with pytest.raises(UserError, match=f"{to} does not compute this model"):
            export_model(job)
        return
    export_model(job)
    assert config_of(tmp_path / "back")["hidden_act"] == "silu"
    theirs, ours = (transformers_logits(folder, tokens()) for folder in (source, tmp_path / "back"))
    assert (theirs - ours).abs().max() <= 1e-5


CAPPED = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
ROPES = {
    "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
REFUSED = {
    "a cap of scores": ("gemma2", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50: .* soft cap"),
    "a cap of logits": ("gemma2", {"final_logit_softcapping": 30.0}, "final_logit_softcapping 30: .* soft cap"),
    "two RoPEs": (
        "gemma3",
        {"rope_parameters": ROPES, "layer_types": ["sliding_attention", "full_attention"] * 2},
        "10000.0.* in layers with a window and .*1000000.0.* in the others",
    ),
    "attention both ways": ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention True"),
    "gelu by erf": ("gemma2", {"hidden_activation": "gelu"}, "hidden_activation 'gelu'"),
    "biases": ("gemma", {"attention_bias": True}, "attention_bias True"),
    "a gate that others have": ("llama", {"hidden_act": "gelu_pytorch_tanh"}, "gelu_tanh, which is not known in llama"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_rejects_by_name_what_megatron_does_not_compute(tmp_path, name):
    model, changes, said = REFUSED[name]
    with pytest.raises(UserError, match=said):
        import_model(ImportJob(changed(tmp_path, model, **changes), tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_megatron_has_no_soft_cap():
    """Fails when a later Megatron has one: then it can be carried over."""
    from megatron.core.transformer.transformer_config import MLATransformerConfig

    assert not [field.name for field in fields(MLATransformerConfig) if "cap" in field.name and "soft" in field.name]


def test_full_attention_everywhere_needs_one_rope(tmp_path):
    """The RoPE of layers with a window is read only where there are any."""
    arch, notes = architecture_of({**config_of(make_model("gemma3", tmp_path / "hf")), "rope_parameters": ROPES})
    assert arch.rope.theta == 1000000.0 and not notes
