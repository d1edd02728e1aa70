"""From a run's directory to a score of lm-evaluation-harness by the commands of the docs; its bits per byte are ours."""

import importlib.util
import json

import pytest

from megatron_cod.data.preprocessing.run import PreprocessJob, preprocess
from megatron_cod.data.sample_corpus import sample_corpus_path
from megatron_cod.data.tokenizers.choice import TokenizerChoice
from megatron_cod.data.tokenizers.sentencepiece_training import TokenizerTraining, train_tokenizer
from tests.conftest import ROOT, TINY
from tests.distributed.runs import PP2, succeed
from tests.training.evaluation.datasets import sentences
from tests.training.evaluation.page import blocks, run_block
from tests.training.evaluation.runs import result

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("lm_eval") is None, reason="not installed: lm-eval (pip install -e '.[consumers]')"
    ),
]
WINDOW = 128


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A directory with a run of 20 steps on pieces of a SentencePiece model, saved at PP 2."""
    home = tmp_path_factory.mktemp("home")
    for name in ("tools", "examples", "megatron_cod"):
        (home / name).symlink_to(ROOT / name)
    source = str(sample_corpus_path())
    training = TokenizerTraining(output_prefix=str(home / "t"), inputs=[source], vocab_size=400, model_type="bpe")
    model = train_tokenizer(training).model
    choice = TokenizerChoice("SentencePieceTokenizer", model)
    preprocess(PreprocessJob(inputs=(source,), output_prefix=str(home / "d"), tokenizer=choice, append_eod=True))
    flags = [*TINY, "--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", str(model), *PP2]
    flags += ["--unset", "vocab-size", "--padded-vocab-size", "400", "--seq-length", str(WINDOW), "--lr", "3e-3"]
    data = ["--train-data-path", str(home / "d_text_document"), "--train-iters", "20", "--eval-iters", "0"]
    succeed(2, [*flags, *data, "--save", str(home / "runs" / "first"), "--save-interval", "20"])
    return home


def offline(home):
    return {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(home / "cache")}


def scores(folder) -> dict:
    (results,) = folder.rglob("results_*.json")
    return json.loads(results.read_text())["results"]


def test_commands_of_the_page_run(home):
    run_block(blocks()[1], home, **offline(home))
    assert 0 < scores(home / "hf" / "scores")["speeches"]["bits_per_byte,none"] < 8


def test_bits_per_byte_equal_lm_evals(home, tmp_path):
    """On documents no longer than a window; longer ones are cut in another way."""
    texts = [text for text in sentences() if len(text) < WINDOW][:12]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    task = (home / "examples" / "lm_eval" / "speeches.yaml").read_text()
    task = task.replace("megatron_cod/data/sample/sotu_1998_2021.jsonl", str(tmp_path / "texts.jsonl"))
    (tmp_path / "local.yaml").write_text(task.replace("task: speeches", "task: local"))
    command = f"""\
python tools/convert_hf.py export --checkpoint runs/first --output {tmp_path / "hf"}
python -m lm_eval --model hf --model_args pretrained={tmp_path / "hf"},dtype=float32 --tasks local \
    --include_path {tmp_path} --device cpu --output_path {tmp_path / "scores"}
"""
    run_block(command, home, **offline(home))
    theirs = scores(tmp_path / "scores")["local"]["bits_per_byte,none"]
    flags = ["--eval-mode", "document", "--eval-prefix", "bos", "--no-eval-append-eod"]
    data = ["--load", str(home / "runs" / "first"), "--eval-data", str(tmp_path / "texts.jsonl")]
    ours = result(tmp_path, 2, [*data, *flags])["total"]["bits_per_byte"]
    print(theirs, ours)
    assert theirs == pytest.approx(ours, rel=1e-4)
