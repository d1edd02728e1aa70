"""Models from elsewhere: re-expressed as LNS, the LNS authors' unfolded layout, vocabularies, tokenizer files."""

import json

import pytest
import torch
import yaml

from megatron_cod.huggingface import folding
from megatron_cod.huggingface.export import ExportJob, export_model
from megatron_cod.huggingface.importing import ImportJob, import_model
from megatron_cod.schemes.depth import depth_factor
from tests.distributed.launch import run_training_ranks
from tests.huggingface.megatron import ONE, PP2, TP2_SP, megatron_logits
from tests.huggingface.models import MODELS, make_model, same_tensors, tensors, tokens, transformers_logits

TOLERANCE = 1e-5


@pytest.mark.parametrize(
    "name", ["llama", "qwen3", "mixtral", "deepseek v3", "qwen3 moe", "phi3", "smollm3", "granite", "gemma", "glm"]
)
@pytest.mark.parametrize("layout", [ONE, PP2], ids=["one", "pp2"])
@pytest.mark.slow_except("one-qwen3")
def test_as_lns_it_computes_the_same(tmp_path, name, layout):
    make_model(name, tmp_path / "hf")
    found = import_model(ImportJob(tmp_path / "hf", tmp_path / "lns", as_scheme="lns"))
    assert found.scheme.scheme == "lns"
    assert yaml.safe_load((tmp_path / "lns" / "recipe.yaml").read_text())["norm-scheme"] == "lns"
    theirs = transformers_logits(tmp_path / "hf", tokens())
    assert (megatron_logits(tmp_path / "lns", layout, tokens()) - theirs).abs().max() <= TOLERANCE


@pytest.mark.slow
def test_as_lns_latent_attention_over_tensor_parallelism(tmp_path):
    make_model("deepseek v2", tmp_path / "hf")
    import_model(ImportJob(tmp_path / "hf", tmp_path / "lns", as_scheme="lns"))
    theirs = transformers_logits(tmp_path / "hf", tokens())
    assert (megatron_logits(tmp_path / "lns", TP2_SP, tokens()) - theirs).abs().max() <= TOLERANCE


def test_a_checkpoint_as_lns_is_refused_as_pre_ln(tmp_path, tiny):
    make_model("llama", tmp_path / "hf")
    import_model(ImportJob(tmp_path / "hf", tmp_path / "lns", as_scheme="lns"))
    recipe = ["--recipe", str(tmp_path / "lns" / "recipe.yaml"), "--load", str(tmp_path / "lns"), "--mock-data"]
    run = ["--train-iters", "1", "--micro-batch-size", "1", "--global-batch-size", "1", "--lr", "1e-4", "--dry-run"]
    run += ["--eval-iters", "0"]
    ended = run_training_ranks(
        1, [*recipe, *run, "--norm-scheme", "pre_ln", "--unset", "lns-placement", "lns-exponent", "lns-router"]
    )
    assert ended[0].code == 2 and "was trained with --norm-scheme lns" in ended[0].output, ended[0].output[-2000:]
    assert run_training_ranks(1, [*recipe, *run])[0].code == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bits_come_back_exactly(tmp_path, dtype):
    make_model("llama", tmp_path / "hf", dtype)
    found = import_model(ImportJob(tmp_path / "hf", tmp_path / "lns", as_scheme="lns"))
    assert not any("last place" in note for note in found.notes)
    export_model(ExportJob(tmp_path / "lns", tmp_path / "back", dtype=str(dtype).removeprefix("torch.")))
    assert same_tensors(tensors(tmp_path / "hf"), tensors(tmp_path / "back"))


def test_32_bits_come_back_but_for_counted_last_places(tmp_path):
    make_model("llama", tmp_path / "hf")
    found = import_model(ImportJob(tmp_path / "hf", tmp_path / "lns", as_scheme="lns"))
    export_model(ExportJob(tmp_path / "lns", tmp_path / "back"))
    before, after = tensors(tmp_path / "hf"), tensors(tmp_path / "back")
    differ = 0
    for name, tensor in before.items():
        wrong = tensor != after[name]
        differ += int(wrong.sum())
        assert name.endswith("layernorm.weight") or not wrong.any()
        up, down = (torch.nextafter(tensor, torch.full_like(tensor, to)) for to in (10.0, -10.0))
        assert ((after[name] == tensor) | (after[name] == up) | (after[name] == down)).all(), name
    assert differ > 0
    assert [int(note.split()[0]) for note in found.notes if "last place" in note] == [differ]


def test_unfolding_finds_every_number_that_has_one():
    """All gammas in a binade around 1, for each factor: folded and unfolded, they fold to the same number again."""
    for layer in (2, 3, 5, 7, 12, 24):
        factor = depth_factor(layer)
        gammas = torch.linspace(0.5, 2.5, 200_001)
        held = folding.fold(gammas, factor, torch.float32)
        found, lost = folding.unfold(held, factor)
        assert lost == 0 and torch.equal(folding.fold(found, factor, torch.float32), held)


def test_multiplying_by_the_root_would_not_find_them():
    """The mutant: gamma * sqrt(l) in fp32."""
    held = folding.fold(torch.linspace(0.5, 2.5, 200_001), depth_factor(3), torch.float32)
    assert not torch.equal(folding.fold(held * 3**0.5, depth_factor(3), torch.float32), held)


@pytest.fixture(scope="module")
def authors(tmp_path_factory):
    """A directory like LNS_1B, small: a plain Llama without a word of LNS, whose gammas lack the factors."""
    folder = tmp_path_factory.mktemp("authors")
    MODELS["authors"] = (
        "LlamaForCausalLM",
        # An ffn that does not divide by 2, as 5461 does not.
        {"num_hidden_layers": 6, "num_key_value_heads": 4, "intermediate_size": 43, "vocab_size": 128},
    )
    make_model("authors", folder / "hf")
    del MODELS["authors"]
    return folder


def expected_logits(authors) -> torch.Tensor:
    """The LNS function of the directory, computed by transformers with a hook on each norm of a block."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(authors / "hf").eval()
    for number, layer in enumerate(model.model.layers, 1):
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.register_forward_hook(lambda _m, _i, out, number=number: out / number**0.5)
    with torch.no_grad():
        return model(tokens()).logits


@pytest.mark.parametrize("kind", ["safetensors", "bin", "bin shards"])
@pytest.mark.slow
def test_reads_the_authors_layout(authors, tmp_path, kind):
    source = authors / "hf"
    if kind != "safetensors":
        source = tmp_path / "hf"
        source.mkdir()
        (source / "config.json").write_text((authors / "hf" / "config.json").read_text())
        held = tensors(authors / "hf")
        if kind == "bin":
            torch.save(held, source / "pytorch_model.bin")
        else:
            names = sorted(held)
            files = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(names)}
            for file in sorted(set(files.values())):
                torch.save({name: held[name] for name in names if files[name] == file}, source / file)
            (source / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    found = import_model(ImportJob(source, tmp_path / "lns", unfolded_lns=True))
    assert found.scheme.scheme == "lns"
    expected = expected_logits(authors)
    assert (megatron_logits(tmp_path / "lns", PP2, tokens()) - expected).abs().max() <= TOLERANCE
    export_model(ExportJob(tmp_path / "lns", tmp_path / "served"))
    assert (transformers_logits(tmp_path / "served", tokens()) - expected).abs().max() <= TOLERANCE
    # And without the flag it is the plain Llama that it looks like: another function.
    assert (transformers_logits(source, tokens()) - expected).abs().max() > 1e-2


def test_unfolded_weights_back_to_pre_ln(authors, tmp_path):
    job = ImportJob(authors / "hf", tmp_path / "pre_ln", as_scheme="pre_ln", unfolded_lns=True)
    assert import_model(job).scheme.scheme == "pre_ln"
    assert (megatron_logits(tmp_path / "pre_ln", ONE, tokens()) - expected_logits(authors)).abs().max() <= TOLERANCE


def test_the_attention_window_is_reported(tmp_path):
    make_model("mistral", tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps({**config, "sliding_window": 64}))
    found = import_model(ImportJob(tmp_path / "hf", tmp_path / "megatron"))
    assert any("window of 64 tokens is not carried over" in note for note in found.notes)
    assert yaml.safe_load((tmp_path / "megatron" / "recipe.yaml").read_text())["max-position-embeddings"] == 64


def test_companion_files_and_other_keys_come_along(tmp_path):
    make_model("llama", tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps({**config, "eos_token_id": 7, "bos_token_id": 5}))
    (tmp_path / "hf" / "generation_config.json").write_text('{"eos_token_id": 7, "temperature": 0.6}')
    (tmp_path / "hf" / "tokenizer.json").write_text("{}")
    import_model(ImportJob(tmp_path / "hf", tmp_path / "megatron"))
    export_model(ExportJob(tmp_path / "megatron", tmp_path / "back"))
    assert json.loads((tmp_path / "back" / "config.json").read_text())["eos_token_id"] == 7
    for name in ("generation_config.json", "tokenizer.json"):
        assert (tmp_path / "back" / name).read_text() == (tmp_path / "hf" / name).read_text()
    recipe = yaml.safe_load((tmp_path / "megatron" / "recipe.yaml").read_text())
    assert recipe["tokenizer-type"] == "HuggingFaceTokenizer"
    assert (tmp_path / "megatron" / "huggingface" / "tokenizer.json").is_file()
    assert recipe["tokenizer-model"] == str((tmp_path / "megatron" / "huggingface").resolve())
