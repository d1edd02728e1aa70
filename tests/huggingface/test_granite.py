"""Granite's multipliers: three are Megatron's own, that of the branches is folded into their last rows."""

import json

import pytest
import torch

from megatron_cod.errors import UserError
from megatron_cod.huggingface import checkpoint, export_weights
from megatron_cod.huggingface.export import ExportJob, export_model
from megatron_cod.huggingface.importing import ImportJob, import_model
from tests.huggingface.megatron import ONE, megatron_logits
from tests.huggingface.models import MODELS, make_model, same_tensors, tensors, tokens, transformers_logits

PUBLISHED = {"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "logits_scaling": 6.0}


@pytest.fixture
def granite(tmp_path, monkeypatch):
    """A directory with the constants of Granite 3, in a type."""
    kind, changes = MODELS["granite"]
    monkeypatch.setitem(MODELS, "granite", (kind, {**changes, **PUBLISHED}))
    return lambda dtype=torch.float32: make_model("granite", tmp_path / "hf", dtype)


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bits_come_back_exactly(granite, tmp_path, dtype):
    source = granite(dtype)
    import_model(ImportJob(source, tmp_path / "megatron"))
    export_model(ExportJob(tmp_path / "megatron", tmp_path / "back", dtype=str(dtype).removeprefix("torch.")))
    assert same_tensors(tensors(source), tensors(tmp_path / "back"))
    assert {name: config_of(tmp_path / "back")[name] for name in PUBLISHED} == PUBLISHED
    assert config_of(tmp_path / "back")["attention_multiplier"] == 0.125


def test_32_bits_come_back_but_for_last_places_of_output_rows(granite, tmp_path):
    source = granite()
    import_model(ImportJob(source, tmp_path / "megatron"))
    export_model(ExportJob(tmp_path / "megatron", tmp_path / "back"))
    before, after = tensors(source), tensors(tmp_path / "back")
    differ = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert differ and all(name.endswith(("o_proj.weight", "down_proj.weight")) for name in differ)
    assert all(torch.allclose(before[name], after[name], rtol=2**-23, atol=0) for name in differ)


def test_rows_of_a_narrower_checkpoint_are_not_divided(granite, tmp_path, monkeypatch):
    """Rounded to bf16 by training, a quotient would be rounded again: the rows stay, and the multiplier is 1."""
    source = granite()
    import_model(ImportJob(source, tmp_path / "megatron"))
    monkeypatch.setattr(checkpoint.MegatronCheckpoint, "dtype", lambda _self, _unit: torch.bfloat16)
    export_model(ExportJob(tmp_path / "megatron", tmp_path / "back", dtype="float32"))
    assert config_of(tmp_path / "back")["residual_multiplier"] == 1.0
    theirs, ours = (transformers_logits(folder, tokens()) for folder in (source, tmp_path / "back"))
    assert (theirs - ours).abs().max() <= 1e-5


def test_a_run_in_bf16_loads_rows_of_fp32(granite, tmp_path):
    source = granite(torch.bfloat16)
    import_model(ImportJob(source, tmp_path / "megatron"))
    found = megatron_logits(tmp_path / "megatron", ONE, tokens(), "--bf16")
    exact, theirs = (transformers_logits(source, tokens(), dtype) for dtype in (torch.float32, torch.bfloat16))
    assert (found - exact).abs().mean() <= 1.5 * (theirs - exact).abs().mean()


@pytest.mark.parametrize("family", ["llama", "phi3", "glm", "gemma"])
@pytest.mark.slow
def test_another_family_has_the_multipliers_in_its_weights(granite, tmp_path, family):
    source = granite()
    import_model(ImportJob(source, tmp_path / "lns", as_scheme="lns"))
    found = export_model(ExportJob(tmp_path / "lns", tmp_path / "back", family=family))
    assert any("multipliers are in the weights" in note for note in found.notes)
    assert "embedding_multiplier" not in config_of(tmp_path / "back")
    theirs, ours = (transformers_logits(folder, tokens()) for folder in (source, tmp_path / "back"))
    assert (theirs - ours).abs().max() <= 1e-5


@pytest.mark.slow
def test_detects_keys_that_are_scaled_with_the_queries(granite, tmp_path, monkeypatch):
    """The mutant: one fused tensor of queries, keys and values, multiplied as a whole."""
    source = granite()
    import_model(ImportJob(source, tmp_path / "megatron"))
    monkeypatch.setattr(export_weights, "scale_queries", lambda whole, _arch, factor: whole * factor)
    export_model(ExportJob(tmp_path / "megatron", tmp_path / "back", family="phi3"))
    theirs, ours = (transformers_logits(folder, tokens()) for folder in (source, tmp_path / "back"))
    assert (theirs - ours).abs().max() > 1e-3


@pytest.mark.parametrize("name", [*PUBLISHED, "attention_multiplier"])
def test_rejects_a_multiplier_of_zero(granite, tmp_path, name):
    source = granite()
    (source / "config.json").write_text(json.dumps({**config_of(source), name: 0.0}))
    with pytest.raises(UserError, match=f"{name} 0; it must be more than 0"):
        import_model(ImportJob(source, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
