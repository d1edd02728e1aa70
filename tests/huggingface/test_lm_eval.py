"""An exported LNS directory in lm-evaluation-harness, on a local task file: its figures are the model's own."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch

from megatron_cod.data.sample_corpus import sample_corpus_path
from megatron_cod.data.tokenizers.sentencepiece_training import TokenizerTraining, train_tokenizer
from megatron_cod.huggingface import companions
from megatron_cod.huggingface.export import ExportJob, export_model
from megatron_cod.huggingface.importing import ImportJob, import_model
from tests.huggingface.models import MODELS, make_model, transformers_logits

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("lm_eval") is None, reason="not installed: lm-eval (pip install -e '.[consumers]')"
    ),
]
TASK = """\
task: local_text
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - metric: bits_per_byte
"""


def test_lm_eval_reads_an_exported_directory(tmp_path):
    from transformers import AutoTokenizer

    training = TokenizerTraining(
        output_prefix=str(tmp_path / "t"), inputs=[str(sample_corpus_path())], vocab_size=400, model_type="bpe"
    )
    tokenizer = train_tokenizer(training).model
    MODELS["small"] = ("LlamaForCausalLM", {"vocab_size": 400, "bos_token_id": 1, "eos_token_id": 2})
    make_model("small", tmp_path / "hf")
    del MODELS["small"]
    companions.copy_tokenizer_of(type("Arguments", (), {"tokenizer_model": str(tokenizer)}), tmp_path / "hf")
    import_model(ImportJob(tmp_path / "hf", tmp_path / "lns", as_scheme="lns"))
    export_model(ExportJob(tmp_path / "lns", tmp_path / "served"))

    text = "My fellow citizens, the state of our Union is strong."
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": text}) + "\n")
    (tmp_path / "local_text.yaml").write_text(TASK.format(file=tmp_path / "text.jsonl"))
    model_args = f"pretrained={tmp_path / 'served'},dtype=float32"
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", model_args, "--device", "cpu"]
    command += ["--include_path", str(tmp_path), "--tasks", "local_text", "--output_path", str(tmp_path / "results")]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **offline})
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = (tmp_path / "results").rglob("results_*.json")
    found = json.loads(results.read_text())["results"]["local_text"]["bits_per_byte,none"]

    # It puts the text behind the token that begins one, and counts every token of the text.
    ids = AutoTokenizer.from_pretrained(tmp_path / "served").encode(text)
    start = [1] if ids[0] != 1 else []
    whole = torch.tensor([[*start, *ids]])
    losses = transformers_logits(tmp_path / "served", whole)[0, :-1].log_softmax(-1)
    bits = -losses.gather(1, whole[0, 1:, None]).sum() / torch.log(torch.tensor(2.0))
    assert found == pytest.approx(float(bits) / len(text.encode()), rel=1e-4)
