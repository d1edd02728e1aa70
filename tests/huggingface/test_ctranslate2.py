"""A consumer that is not transformers: exported LNS models in CTranslate2, by its own converter and its own kernels.

Which of the families it takes is its matter: RoPE scalings but linear ones, head sizes of a Llama other than hidden/heads,
experts and SmolLM3 it refuses or computes otherwise (docs/huggingface.md).
"""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_cod.huggingface.export import ExportJob, export_model
from megatron_cod.huggingface.importing import ImportJob, import_model
from tests.huggingface.models import MODELS, make_model, tokens, transformers_logits

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ctranslate2") is None,
    reason="not installed: ctranslate2 (pip install -e '.[consumers]')",
)
OTHER_BASE = ("LlamaForCausalLM", {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}})
NEW = 24


def add_tokenizer(folder: Path, size: int = 128) -> None:
    """The converter asks for the text of each id."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"t{number}": number for number in range(3, size)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


def exported(name: str, folder: Path) -> Path:
    """A model of a family whose Megatron checkpoint is LNS, exported with its factors folded, and unfolded."""
    add_tokenizer(make_model(name, folder / "hf"))
    import_model(ImportJob(folder / "hf", folder / "lns", as_scheme="lns", verify=False))
    export_model(ExportJob(folder / "lns", folder / "folded", verify=False))
    export_model(ExportJob(folder / "lns", folder / "unfolded", fold=False, verify=False))
    return folder


def opened(folder: Path):
    """CTranslate2's model of a directory, in fp32 on the CPU."""
    from ctranslate2 import Generator
    from ctranslate2.converters import TransformersConverter

    converted = folder.with_name(folder.name + ".ct2")
    TransformersConverter(str(folder)).convert(str(converted))
    return Generator(str(converted), device="cpu", compute_type="float32", intra_threads=1)


def logits(model, ids: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.array(model.forward_batch(ids.tolist())))


def continued(folder: Path, ids: torch.Tensor) -> list[int]:
    """Greedy tokens of transformers."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = model.generate(ids, do_sample=False, max_new_tokens=NEW, eos_token_id=None, pad_token_id=0)
    return found[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("name", ["llama", "llama of another base", "llama linear", "mistral", "qwen3"])
@pytest.mark.slow_except("llama of another base")
def test_ctranslate2_computes_the_exported_model(name, tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "llama of another base", OTHER_BASE)
    folder = exported(name, tmp_path)
    ids = tokens()
    model, theirs = opened(folder / "folded"), transformers_logits(folder / "folded", ids)
    assert theirs.abs().max() > 0.5
    assert (logits(model, ids) - theirs).abs().max() <= 1e-4
    prompt = ids[:1, :8]
    (answer,) = model.generate_batch(
        [[f"t{number}" if number > 2 else ("<unk>", "<s>", "</s>")[number] for number in prompt[0].tolist()]],
        max_length=NEW,
        min_length=NEW,
        sampling_topk=1,
        include_prompt_in_result=False,
        end_token=[],
    )
    assert answer.sequences_ids[0] == continued(folder / "folded", prompt)
    # The control: without the factors in the gammas it is another model.
    assert (logits(opened(folder / "unfolded"), ids) - theirs).abs().max() > 1e-2
