"""Conversations, a base checkpoint and flags of a fine-tuning run of seconds."""

import json

import pytest

from tests.conftest import TINY
from tests.data.chat.toys import texts
from tests.distributed.launch import run_training_ranks

TOY = [flag.replace("debug.yaml", "sft_debug.yaml") for flag in TINY[: TINY.index("--seq-length")]]
TOY += ["--seq-length", "208", "--log-interval", "1", "--lr", "1e-3", "--eval-interval", "4"]


def conversations(count: int) -> list[dict]:
    """Questions about real sentences; the answers are from a few to 40 bytes long, one to three of them."""
    sentences = [part.strip() for part in " ".join(texts()[:2]).split(".") if 20 < len(part.strip()) < 80]
    found = []
    for n in range(count):
        turns = []
        for sentence in sentences[3 * n : 3 * n + 1 + n % 3]:
            half = len(sentence) // 2
            answer = sentence[half : half + 4 + 7 * (n % 6)]
            turns += [{"role": "user", "content": sentence[:12]}, {"role": "assistant", "content": answer}]
        found.append({"messages": turns})
    return found


@pytest.fixture(scope="session")
def chats(tmp_path_factory):
    """Files of 40 conversations to train on and 6 to validate on."""
    folder = tmp_path_factory.mktemp("chats")
    records = conversations(46)
    for name, part in {"train": records[:40], "valid": records[40:]}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in part))
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory, tiny):
    """A checkpoint of two steps of pretraining, under each scheme."""
    folder = tmp_path_factory.mktemp("base")
    for scheme in ("lns", "pre_ln"):
        flags = ["--train-iters", "2", "--eval-iters", "0", "--norm-scheme", scheme, "--save", str(folder / scheme)]
        assert run_training_ranks(1, [*tiny, *flags, "--save-interval", "2"])[0].code == 0
    return folder


@pytest.fixture(scope="session")
def toy(base, chats):
    """Flags of a run of seconds: 3 epochs of 40 conversations of real text in rows of 208 bytes, 4 rows a step."""
    data = ["--sft-data-path", str(chats / "train.jsonl"), "--sft-valid-data-path", str(chats / "valid.jsonl")]
    return [*TOY, "--load", str(base / "lns"), *data]
