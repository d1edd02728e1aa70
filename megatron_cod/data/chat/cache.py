"""Tokenized conversations kept on disk: a run that starts again, or the next one on the same data, need not tokenize."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from megatron_cod.common.files import making_directory
from megatron_cod.data.chat.chat_format import ChatFormat
from megatron_cod.data.chat.samples import Counts, Reading, Samples, read_samples
from megatron_cod.data.reading.inputs import find_inputs
from megatron_cod.errors import bad_input

_VERSION = 3
_ARRAYS = ("ids", "trained", "starts")


def cache_key(files: Sequence[str], chat: ChatFormat, reading: Reading) -> str:
    """Of all that the tokens depend on: the bytes of the files, tokenizer, template with what it is given, and how they
    are read."""
    encoder = chat.encoder
    names = [sorted(encoder.variables.items()), sorted(encoder.specials.items())]
    digest = hashlib.sha256(json.dumps([_VERSION, chat.template.text, asdict(reading), *names]).encode())
    digest.update(encoder.fingerprint())
    for source in find_inputs(files, "jsonl", log=lambda _: None):  # reading them logs it
        with source.path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:24]


def cached_samples(
    folder: str | None, files: Sequence[str], chat: ChatFormat, reading: Reading, log: Callable[[str], None]
) -> tuple[Samples, Counts]:
    """``read_samples``, or what it gave before, mapped from ``folder``. Without a folder nothing is kept."""
    if folder is None:
        return read_samples(files, chat, reading, log)
    place = Path(folder) / f"conversations_{cache_key(files, chat, reading)}"
    if place.is_dir():
        log(f"{' '.join(files)}: tokenized before, taken from {place}")
        with bad_input(place):
            arrays = [np.load(place / f"{name}.npy", mmap_mode="r") for name in _ARRAYS]
            return Samples(*arrays), Counts(**json.loads((place / "counts.json").read_text()))
    samples, counts = read_samples(files, chat, reading, log)
    with making_directory(place) as part:  # the directory of another rank that was first is the same
        for name in _ARRAYS:
            np.save(part / f"{name}.npy", getattr(samples, name))
        (part / "counts.json").write_text(json.dumps(asdict(counts)))
    return samples, counts
