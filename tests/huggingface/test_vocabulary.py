"""An export keeps a row for each token of the run's tokenizer, whatever --vocab-size of the recipe says."""

import pytest

from megatron_cod.data.sample_corpus import sample_corpus_path
from megatron_cod.data.tokenizers.sentencepiece_training import TokenizerTraining, train_tokenizer
from megatron_cod.errors import UserError
from megatron_cod.huggingface.checkpoint import MegatronCheckpoint
from megatron_cod.huggingface.export import ExportJob, export_model
from tests.conftest import TINY
from tests.distributed.runs import succeed

TOKENS, OF_THE_RECIPE = 400, 257


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Of the debug recipe, which is for bytes, with another tokenizer."""
    folder = tmp_path_factory.mktemp("vocabulary")
    training = TokenizerTraining(
        output_prefix=str(folder / "t"), inputs=[str(sample_corpus_path())], vocab_size=TOKENS, model_type="bpe"
    )
    tokenizer = [
        "--tokenizer-type",
        "SentencePieceTokenizer",
        "--tokenizer-model",
        str(train_tokenizer(training).model),
    ]
    flags = ["--mock-data", "--padded-vocab-size", "512", "--train-iters", "1", "--eval-iters", "0"]
    ended = succeed(1, [*TINY, *tokenizer, *flags, "--save", str(folder / "run"), "--save-interval", "1"])
    return folder / "run", ended[0].output


def test_every_token_has_a_row(run, tmp_path):
    folder, output = run
    assert f"--vocab-size {OF_THE_RECIPE} is replaced by {TOKENS}" in output
    found = export_model(ExportJob(folder, tmp_path / "hf"))
    assert found.arch.vocab == found.config["vocab_size"] == TOKENS


def test_tokens_without_rows_are_refused(run, tmp_path, monkeypatch):
    """As checkpoints of 0.2.0 and before are."""
    right = MegatronCheckpoint.__init__

    def older(self, path):
        right(self, path)
        self.args.vocab_size = OF_THE_RECIPE

    monkeypatch.setattr(MegatronCheckpoint, "__init__", older)
    with pytest.raises(UserError, match=f"has {TOKENS} tokens, .* give --vocab-size {TOKENS}"):
        export_model(ExportJob(run[0], tmp_path / "hf"))
    assert not list(tmp_path.iterdir())
    assert export_model(ExportJob(run[0], tmp_path / "hf", vocab=TOKENS)).arch.vocab == TOKENS
