"""A trained checkpoint and data to measure it on."""

import json

import numpy as np
import pytest

from tests.distributed.runs import PP2, succeed
from tests.training.evaluation.datasets import EOD, sentences, write_dataset


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
