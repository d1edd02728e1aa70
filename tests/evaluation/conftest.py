"""A trained checkpoint and data to measure it on."""

import json

import numpy as np
import pytest

from megatron_cod.data.sample_corpus import sample_corpus_path
from tests.distributed.runs import PP2, succeed

EOD = 256


def write_dataset(prefix, documents: list[np.ndarray]) -> None:
    """A ``.bin/.idx`` without a record, as other tools write them."""
    from megatron_cod.data.megatron_api import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    for ids in documents:
        builder.add_document(np.asarray(ids), [len(ids)])
    builder.finalize(f"{prefix}.idx")


def sentences() -> list[str]:
    """Real sentences, of a few to a few hundred bytes."""
    text = json.loads(sample_corpus_path().read_text().splitlines()[5])["text"]
    return [part.strip() + "." for part in text.split(".") if len(part.strip()) > 3]


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory, tiny):
    """The directories of runs of 8 steps under two schemes, saved over two stages."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for scheme in ("lns", "sandwich_ln"):
        flags = [*tiny, *PP2, "--norm-scheme", scheme, "--save", str(folder / scheme), "--save-interval", "8"]
        succeed(2, [*flags, "--lr", "3e-3"])
    return folder


@pytest.fixture(scope="session")
def eval_data(tmp_path_factory):
    """``web``, a dataset of 8 documents; ``mix.jsonl``, 18 lines of two domains: 3,300 tokens in all."""
    folder = tmp_path_factory.mktemp("eval_data")
    texts = sentences()
    assert {len(text) > 100 for text in texts[:26]} == {True, False} and min(map(len, texts)) < 33
    write_dataset(folder / "web", [np.array([*text.encode(), EOD]) for text in texts[:8]])
    records = [{"text": text, "source": "ab"[n % 3 == 0]} for n, text in enumerate(texts[8:26])]
    (folder / "mix.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


@pytest.fixture(scope="session")
def asked(eval_data):
    """Flags that measure on both."""
    data = [f"web={eval_data / 'web'}", f"mix={eval_data / 'mix.jsonl'}"]
    return ["--eval-data", *data, "--eval-domain-key", "source"]
