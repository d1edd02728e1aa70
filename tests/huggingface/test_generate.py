"""tools/generate.py: the same text from a checkpoint and from its export; sampling; tokenizers of a run."""

import pytest
import sentencepiece
import torch

from megatron_cod.data.sample_corpus import sample_corpus_path
from megatron_cod.data.tokenizers.sentencepiece_training import TokenizerTraining, train_tokenizer
from megatron_cod.huggingface.export import ExportJob, export_model
from megatron_cod.huggingface.generation import ByteTokenizer, Sampling, generate, next_token, open_checkpoint
from tests.distributed.runs import succeed
from tests.programs import run_program


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("run")
    flags = ["--lr", "1e-2", "--train-iters", "30", "--max-position-embeddings", "64", "--eval-interval", "30"]
    succeed(1, [*tiny, *flags, "--save", str(folder / "run"), "--save-interval", "30"])
    return folder


def tool(*arguments):
    return run_program("generate.py", *arguments)


@pytest.mark.slow
def test_checkpoint_and_export_generate_the_same(run):
    found = export_model(ExportJob(run / "run", run / "hf"))
    assert found.arch.vocab == 257
    texts = [
        tool("--checkpoint", run / "run", "The state", "--max-new-tokens", "20"),
        tool("--model", run / "hf", "The state", "--max-new-tokens", "20"),
    ]
    assert [text.returncode for text in texts] == [0, 0], texts[0].stderr + texts[1].stderr
    assert texts[0].stdout == texts[1].stdout
    assert texts[0].stdout.startswith("The state") and len(texts[0].stdout) > 15


def test_greedy_is_transformers_own(run):
    model, tokenizer = open_checkpoint(run / "run")
    ids = tokenizer.encode("The state")
    expected = model.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False, eos_token_id=256, pad_token_id=0)
    assert generate(model, tokenizer, "The state", 20) == tokenizer.decode(expected[0].tolist())


@pytest.mark.slow
def test_sampling_follows_its_seed_and_its_bounds(run):
    model, tokenizer = open_checkpoint(run / "run")
    texts = {generate(model, tokenizer, "The", 20, Sampling(temperature=2.0, seed=seed)) for seed in (1, 1, 2, 3)}
    assert len(texts) == 3
    greedy = generate(model, tokenizer, "The", 20)
    assert generate(model, tokenizer, "The", 20, Sampling(top_k=1)) == greedy
    assert generate(model, tokenizer, "The", 20, Sampling(top_p=1e-6)) == greedy
    logits = torch.tensor([0.0, 3.0, 2.0, 1.0])
    generator = torch.Generator().manual_seed(0)
    drawn = [next_token(logits, Sampling(top_k=2), generator) for _ in range(400)]
    assert set(drawn) == {1, 2}
    assert abs(drawn.count(1) / 400 - 0.731) < 0.08  # 1 / (1 + e^-1)
    # 0.64 and 0.24 of the mass: the second is needed to reach 0.7, the third is not.
    assert {next_token(logits, Sampling(top_p=0.7), generator) for _ in range(200)} == {1, 2}


@pytest.mark.slow
def test_export_includes_sentencepiece_tokenizer(run, tmp_path):
    model = train_tokenizer(
        TokenizerTraining(output_prefix=str(tmp_path / "t"), inputs=[str(sample_corpus_path())], vocab_size=400)
    ).model
    from transformers import AutoTokenizer

    from megatron_cod.huggingface import companions

    class Arguments:
        tokenizer_model = str(model)

    (tmp_path / "hf").mkdir()
    assert "tokenizer.model" in companions.copy_tokenizer_of(Arguments, tmp_path / "hf")
    text = "My fellow citizens, 2001 was hard."
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
    assert AutoTokenizer.from_pretrained(tmp_path / "hf").encode(text) == pieces.encode(text)
    # A unigram model would be read as BPE, with other ids: it is omitted.
    unigram = TokenizerTraining(
        output_prefix=str(tmp_path / "u"), inputs=[str(sample_corpus_path())], vocab_size=400, model_type="unigram"
    )
    Arguments.tokenizer_model = str(train_tokenizer(unigram).model)
    (tmp_path / "hf2").mkdir()
    assert companions.copy_tokenizer_of(Arguments, tmp_path / "hf2") == [] and not list((tmp_path / "hf2").iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--temperature", "0.5"], "go with --sample"),
        (["--sample", "--temperature", "0"], "--temperature must be more than 0"),
        (["--max-new-tokens", "0"], "must be at least 1"),
        (["--tokenizer", "/nowhere"], "no tokenizer files in /nowhere"),
        (["--step", "7"], "is no finished checkpoint"),
    ],
)
def test_rejects_bad_input_in_one_line(run, arguments, said):
    done = tool("--checkpoint", run / "run", "The", *arguments)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(errors) == 1 and said in errors[0] and "Traceback" not in done.stderr


def test_a_prompt_that_is_too_long(run):
    model, _ = open_checkpoint(run / "run")
    with pytest.raises(ValueError, match="the prompt is 64 tokens; it must be from 1 to 63"):
        generate(model, ByteTokenizer(), "x" * 64, 5)


def test_a_directory_that_lacks_a_tensor_is_not_generated_from(tmp_path):
    """transformers would initialise it anew, with a warning."""
    from safetensors.torch import save_file

    from megatron_cod.huggingface.generation import open_directory
    from tests.analysis.depth.toys import save_tokenizer
    from tests.huggingface.models import make_model, tensors

    held = tensors(make_model("llama", tmp_path / "hf"))
    save_tokenizer(tmp_path / "hf")
    open_directory(tmp_path / "hf")
    del held["model.layers.2.mlp.up_proj.weight"]
    save_file(held, tmp_path / "hf" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"does not load whole .*missing: model.layers.2.mlp.up_proj.weight"):
        open_directory(tmp_path / "hf")
