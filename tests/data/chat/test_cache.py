"""Tokenized conversations on disk: the same samples, and never those of other data, templates or rules."""

import dataclasses
import json

import numpy as np
import pytest

from megatron_cod.data.chat import cache
from megatron_cod.data.chat.cache import cached_samples
from megatron_cod.data.chat.chat_format import chat_format_of
from megatron_cod.data.chat.samples import Reading
from tests.data.chat.toys import hugging_face_tokenizer, sentencepiece_model

BYTES = chat_format_of("NullTokenizer", None, 257, "plain")
READING = Reading(64, skip_bad=True)


@pytest.fixture()
def file(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n{\n{"prompt": "c", "completion": "d"}\n')
    return path


def read(tmp_path, file, chat=BYTES, reading=READING):
    said: list[str] = []
    samples, counts = cached_samples(str(tmp_path / "cache"), [str(file)], chat, reading, said.append)
    return samples, counts, any("tokenized before" in line for line in said)


def test_the_second_time_nothing_is_tokenized(tmp_path, file, monkeypatch):
    samples, counts, before = read(tmp_path, file)
    assert not before
    monkeypatch.setattr(cache, "read_samples", None)
    again, same, before = read(tmp_path, file)
    assert before and same == counts and counts.bad == 1
    for name in ("ids", "trained", "starts"):
        assert np.array_equal(getattr(samples, name), getattr(again, name))
    assert [path.name[0] for path in (tmp_path / "cache").iterdir()] == ["c"]


def test_tokenizes_again_after_change(tmp_path, file):
    read(tmp_path, file)
    hugging_face_tokenizer(tmp_path / "hf")
    others = [chat_format_of("NullTokenizer", None, 257, "raw")]
    others.append(chat_format_of("HuggingFaceTokenizer", str(tmp_path / "hf"), None, "plain"))
    config = tmp_path / "hf" / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "eos_token": "<|im_end|>"}))
    others.append(chat_format_of("HuggingFaceTokenizer", str(tmp_path / "hf"), None, "plain"))
    others.append(chat_format_of("SentencePieceTokenizer", str(sentencepiece_model(tmp_path)), None, "plain"))
    assert [read(tmp_path, file, chat)[2] for chat in others] == [False] * 4
    assert [read(tmp_path, file, chat)[2] for chat in others] == [True] * 4
    for change in ({"seq_length": 65}, {"too_long": "drop"}, {"layout": "prompt"}):
        assert not read(tmp_path, file, reading=dataclasses.replace(READING, **change))[2]
    file.write_text(file.read_text() + json.dumps({"prompt": "e", "completion": "f"}))
    samples, _, before = read(tmp_path, file)
    assert not before and len(samples) == 3


def test_without_a_folder_nothing_is_kept(tmp_path, file):
    samples, _ = cached_samples(None, [str(file)], BYTES, READING, print)
    assert len(samples) == 2 and sorted(tmp_path.iterdir()) == [file]
