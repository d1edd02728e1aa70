"""The small public-domain corpus shipped with the package."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

from megatron_cod.data.preprocessing.run import PreprocessJob, preprocess
from megatron_cod.data.tokenizers.choice import TokenizerChoice

_HELD_OUT = 12
"""Every so many-th speech is for validation."""


def sample_corpus_path() -> Path:
    """Path of the sample: 24 speeches as JSON lines with the keys text, year and president.

    Source and licence are in README.md beside it; `tools/make_sample_corpus.py` made it.
    """
    return Path(__file__).parent / "sample" / "sotu_1998_2021.jsonl"


def prepare_sample(folder: Path) -> str:
    """Tokenize the sample to bytes in ``folder``, once; every 12th document is the validation set. Returns the prefix."""
    prefix = folder / "sotu"
    if not (folder / "sotu_valid_text_document.idx").exists():
        print("preparing data: State of the Union speeches 1998-2021 (public domain), one token a byte")
        folder.mkdir(parents=True, exist_ok=True)
        preprocess(
            PreprocessJob(
                inputs=(str(sample_corpus_path()),),
                output_prefix=str(prefix),
                tokenizer=TokenizerChoice("ByteLevelTokenizer"),
                append_eod=True,
                holdout_every=_HELD_OUT,
                overwrite=True,
            )
        )
    return str(prefix)


def sample_conversations(per_speech: int = 20) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """(training, validation) of "Continue this speech of PRESIDENT, YEAR: ..." with a sentence, and the next as the answer.

    Evenly spread over each speech, sentences of moderate length. The speeches that ``prepare_sample`` holds out are held
    out here too, so that no model pretrained on its data was trained on them.
    """
    sides: tuple[list[dict[str, str]], list[dict[str, str]]] = ([], [])
    for number, line in enumerate(sample_corpus_path().read_text(encoding="utf-8").splitlines(), 1):
        speech = json.loads(line)
        sentences = re.split(r"(?<=[.!?])\s+", speech["text"])
        pairs = [
            (one, following)
            for one, following in pairwise(sentences)
            if 25 <= len(one) <= 80 and 15 <= len(following) <= 90
        ]
        for one, following in pairs[:: max(1, len(pairs) // per_speech)][:per_speech]:
            question = f"Continue this speech of {speech['president']}, {speech['year']}: {one}"
            sides[number % _HELD_OUT == 0].append({"prompt": question, "completion": following})
    return sides


def write_sample_conversations(folder: Path) -> tuple[Path, Path]:
    """The same as JSON lines; returns the two files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = (folder / "sotu_train.jsonl", folder / "sotu_valid.jsonl")
    for path, side in zip(paths, sample_conversations(), strict=True):
        path.write_text("".join(json.dumps(one) + "\n" for one in side), encoding="utf-8")
    return paths
