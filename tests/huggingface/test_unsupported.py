"""Architectures that Megatron does not compute are refused by the term that it lacks, which their models do have."""

import json

import pytest
import torch

from megatron_cod.errors import UserError
from megatron_cod.huggingface.export import ExportJob, export_model
from megatron_cod.huggingface.families.table import FAMILIES
from megatron_cod.huggingface.families.unsupported import UNSUPPORTED
from megatron_cod.huggingface.importing import ImportJob, import_model
from tests.huggingface.models import BASE, make_model


def tiny(name):
    """A model of this type on no device."""
    import transformers

    config = transformers.AutoConfig.for_model(name, **BASE, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_rejects_it_by_the_term_that_its_model_has(tmp_path, name):
    assert name not in FAMILIES
    model = tiny(name)
    (tmp_path / "config.json").write_text(json.dumps(model.config.to_dict()))
    with pytest.raises(UserError, match=f"architecture '{name}' cannot be carried over: .*q_norm") as refused:
        import_model(ImportJob(tmp_path, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    held = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    heads = BASE["num_attention_heads"] * (BASE["hidden_size"] // BASE["num_attention_heads"])
    assert held["model.layers.0.self_attn.q_norm.weight"] == (heads,)
    without = "model.layers.0.input_layernorm.weight" not in held
    assert without == ("none before them" in str(refused.value))


def test_an_export_as_one_is_refused_by_the_same_term(tmp_path):
    make_model("llama", tmp_path / "hf")
    import_model(ImportJob(tmp_path / "hf", tmp_path / "megatron"))
    with pytest.raises(UserError, match="'olmo2' cannot be carried over: its norms of queries and keys"):
        export_model(ExportJob(tmp_path / "megatron", tmp_path / "back", family="olmo2"))


def test_megatrons_norms_of_queries_and_keys_go_over_one_head(tmp_path):
    """Fails when a later Megatron has others: then the refusals are out of date."""
    import inspect

    from megatron.core.transformer.attention import SelfAttention

    source = inspect.getsource(SelfAttention.__init__)
    norms = source[source.index("self.q_layernorm = ") : source.index("self.k_layernorm = ")]
    assert "hidden_size=self.hidden_size_per_attention_head" in norms
