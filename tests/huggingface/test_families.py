"""Each family: transformers -> import -> Megatron's logits at three layouts -> export -> the same bits."""

import pytest

from megatron_cod.huggingface.export import ExportJob, export_model
from megatron_cod.huggingface.importing import ImportJob, import_model
from tests.huggingface.megatron import ONE, PP2, TP2, TP2_SP, megatron_logits
from tests.huggingface.models import MODELS, make_model, same_tensors, tensors, tokens, transformers_logits

TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=MODELS)
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("family")
    make_model(request.param, folder / "hf")
    import_model(ImportJob(folder / "hf", folder / "megatron"))
    return request.param, folder


def layouts(name):
    experts = name.startswith(("mixtral", "deepseek", "qwen3 moe"))
    return {"one": ONE, "tp2": TP2_SP if experts else TP2, "pp2": PP2}


@pytest.mark.parametrize("layout", ["one", "tp2", "pp2"])
@pytest.mark.slow_except("llama-pp2", "llama-tp2")
def test_megatron_computes_what_transformers_does(pair, layout):
    name, folder = pair
    ours = megatron_logits(folder / "megatron", layouts(name)[layout], tokens())
    theirs = transformers_logits(folder / "hf", tokens())
    assert theirs.abs().max() > 0.1
    assert (ours - theirs).abs().max() <= TOLERANCE


@pytest.mark.slow_except("llama", "phi3")
def test_the_export_has_the_same_bits(pair):
    _, folder = pair
    export_model(ExportJob(folder / "megatron", folder / "back"))
    assert same_tensors(tensors(folder / "back"), tensors(folder / "hf"))
    assert (
        transformers_logits(folder / "back", tokens()) - transformers_logits(folder / "hf", tokens())
    ).abs().max() == 0
