import json
from pathlib import Path

import pytest

from megatron_cod.data.preprocess import PreprocessJob, preprocess
from megatron_cod.data.sample_corpus import sample_corpus_path
from megatron_cod.data.tokenizers import TokenizerChoice

TINY = [
    *("--recipe", str(Path(__file__).parents[2] / "recipes" / "debug.yaml"), "--num-layers", "4"),
    *("--hidden-size", "32", "--ffn-hidden-size", "64", "--seq-length", "32", "--train-iters", "8"),
    *("--log-interval", "1", "--eval-interval", "4", "--eval-iters", "2"),
]


@pytest.fixture(scope="session")
def text_data(tmp_path_factory):
    """A few real speeches as byte-level tokens; the flags that train on them."""
    folder = tmp_path_factory.mktemp("data")
    lines = sample_corpus_path().read_text().splitlines()[:4]
    source = folder / "some.jsonl"
    source.write_text("\n".join(json.dumps({"text": json.loads(line)["text"]}) for line in lines))
    preprocess(
        PreprocessJob(
            inputs=(str(source),),
            output_prefix=str(folder / "some"),
            tokenizer=TokenizerChoice("ByteLevelTokenizer"),
            append_eod=True,
            holdout_every=4,
        )
    )
    return folder


@pytest.fixture(scope="session")
def tiny(text_data):
    """Flags of a run of seconds on real text, over two pipeline stages when given two ranks."""
    return [
        *TINY,
        *("--train-data-path", str(text_data / "some_train_text_document")),
        *("--valid-data-path", str(text_data / "some_valid_text_document")),
    ]
