"""The C4 recipe of docs/data.md, on real text in C4's file layout, with a tokenizer like T5's, at toy size."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece

from megatron_cod.data.datasets.check import check_prefix
from megatron_cod.data.sample_corpus import sample_corpus_path
from tests.conftest import ROOT

TOY = [
    *("--num-layers", "2", "--hidden-size", "32", "--ffn-hidden-size", "64", "--num-attention-heads", "4"),
    *("--micro-batch-size", "2", "--global-batch-size", "4", "--train-iters", "3", "--lr-warmup-iters", "1"),
    *("--eval-iters", "1", "--log-interval", "1", "--num-workers", "0"),
]


def commands() -> list[str]:
    """The commands of the page's section on C4."""
    section = (ROOT / "docs" / "data.md").read_text().split("\n## C4\n")[1].split("\n## ")[0]
    block = re.search(r"```bash\n(.*?)```", section, re.DOTALL)
    assert block is not None
    return [line for line in block[1].replace("\\\n", " ").splitlines() if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with C4's files, made small, and a tokenizer with T5's settings and special ids."""
    home = tmp_path_factory.mktemp("home")
    for name in ("recipes", "tools"):
        (home / name).symlink_to(ROOT / name)
    speeches = [json.loads(line)["text"] for line in sample_corpus_path().open(encoding="utf-8")]
    pages = [speech[start : start + 2000] for speech in speeches for start in range(0, 16_000, 2000)]
    (home / "c4" / "en").mkdir(parents=True)
    files = {f"c4-train.{number:05d}-of-01024.json.gz": pages[number:150:3] for number in range(3)}
    files["c4-validation.00000-of-00008.json.gz"] = pages[150:]
    for name, texts in files.items():
        rows = ({"text": text, "timestamp": "2019-04-25T12:57:54Z", "url": "https://example.com"} for text in texts)
        with gzip.open(home / "c4" / "en" / name, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    (home / "t5").mkdir()
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(page[:1000] for page in pages), model_writer=model, vocab_size=1000, model_type="unigram",
        normalization_rule_name="nmt_nfkc", pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    (home / "t5" / "spiece.model").write_bytes(model.getvalue())
    return home


def run(words: list[str], home: Path, expected: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words], cwd=home, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == expected, done.stdout[-2000:] + done.stderr[-2000:]
    return done


@pytest.fixture(scope="module")
def prepared(home: Path) -> Path:
    """The same folder after the page's preprocessing commands."""
    for words in map(shlex.split, commands()):
        if words[1] == "tools/preprocess_data.py":
            run(words[1:], home)
    return home


@pytest.mark.slow
def test_commands_of_the_page_run(prepared: Path) -> None:
    train, valid = (check_prefix(prepared / "c4" / f"en_{split}_text_document") for split in ("train", "valid"))
    assert (train.documents, valid.documents) == (150, 42)
    assert train.record is not None and train.record.eod_id == 1
    outputs = []
    for words in map(shlex.split, commands()):
        if words[0] == "torchrun":
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
            words = ["torchrun", *launcher, *words[words.index("-m") :], *TOY]
        if words[1] != "tools/preprocess_data.py":
            outputs.append(run(words[1:], prepared).stdout)
    assert any("step 3/3 | loss" in output for output in outputs)
    assert any("c4/en_train_text_document" in output and "256 tokens" in output for output in outputs)


@pytest.mark.slow
def test_rejects_another_tokenizer(prepared: Path) -> None:
    """The recipe with a model that is not the one of its data."""
    model = prepared / "t5" / "spiece.model"
    content = model.read_bytes()
    model.write_bytes(content + b"\x22\x00")
    try:
        words = ["-m", "megatron_cod.training.pretrain", "--recipe", "recipes/c4.yaml", "--dry-run", *TOY]
        done = run(words, prepared, expected=2)
    finally:
        model.write_bytes(content)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "is another one (sha256" in errors[0]
