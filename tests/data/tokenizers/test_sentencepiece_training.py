from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from megatron_cod.data.reading.skipped import skipped_lines
from megatron_cod.data.sample_corpus import sample_corpus_path
from megatron_cod.data.tokenizers.sentencepiece_training import TokenizerTraining, TrainedTokenizer, train_tokenizer


def train(prefix: Path, **options: Any) -> TrainedTokenizer:
    options.setdefault("inputs", [str(sample_corpus_path())])
    options.setdefault("vocab_size", 800)
    return train_tokenizer(TokenizerTraining(output_prefix=str(prefix), **options))


def load(path: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_text_comes_back_as_it_was(tmp_path: Path, speeches: list[str], model_type: str) -> None:
    result = train(tmp_path / "t", model_type=model_type)
    model = load(result.model)
    assert model.get_piece_size() == result.vocab_size == 800
    assert [model.unk_id(), model.bos_id(), model.eos_id(), model.pad_id()] == [0, 1, 2, 3]
    for text in (speeches[0], "  two  spaces\n\n\ttab \U0001f600 \u0416 ", "x = [1,  2]\n"):
        assert model.decode(model.encode(text)) == text
    assert result.bytes_per_token is not None and result.bytes_per_token > 2
    assert len(result.vocab.read_text(encoding="utf-8").splitlines()) == 800


def test_special_pieces_have_ids_in_order(tmp_path: Path) -> None:
    result = train(tmp_path / "t", bos_piece="", eos_piece="<end>", mask_piece="<mask>", user_defined=["<a>", "<b>"])
    model = load(result.model)
    assert [model.id_to_piece(i) for i in range(6)] == ["<unk>", "<end>", "<pad>", "<mask>", "<a>", "<b>"]
    assert (model.bos_id(), model.eos_id(), model.pad_id()) == (-1, 1, 2)
    assert model.piece_to_id("<a>") in model.encode("x<a>y")


def test_seed_decides_the_sample(tmp_path: Path) -> None:
    def vocabulary(name: str, seed: int) -> str:
        return train(tmp_path / name, seed=seed, max_sentences=200).vocab.read_text(encoding="utf-8")

    assert vocabulary("a", 1) == vocabulary("b", 1)
    assert vocabulary("a2", 1) != vocabulary("c", 2)


def test_splits_digits_and_falls_back_to_bytes_if_requested(tmp_path: Path) -> None:
    model = load(train(tmp_path / "a").model)
    assert model.encode("1998", out_type=str)[-4:] == list("1998")
    plain = load(train(tmp_path / "b", byte_fallback=False).model)
    assert plain.unk_id() in plain.encode("\u0416")
    assert model.unk_id() not in model.encode("\u0416")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"vocab_size": 200}, "--vocab-size 200 must be above 260"),
        ({"vocab_size": 900_000}, "SentencePiece: Vocabulary size too high"),
        ({"character_coverage": 1.5}, "--character-coverage must be above 0"),
        ({"eos_piece": ""}, "cannot be empty"),
        ({"bos_piece": "</s>"}, "special pieces must differ"),
        ({"threads": 0}, "--threads must be 1 or more"),
        ({"json_key": "body"}, "line 1: no key 'body'"),
        ({"inputs": ["none.txt"]}, "none.txt does not exist"),
    ],
)
def test_rejects_bad_options(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError) as caught:
        train(tmp_path / "t", **options)
    assert says in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_existing_models_are_kept(tmp_path: Path) -> None:
    train(tmp_path / "t")
    with pytest.raises(ValueError, match=r"exists already: .*t\.model"):
        train(tmp_path / "t")
    assert train(tmp_path / "t", vocab_size=700, overwrite=True).vocab_size == 700


def test_odd_text_is_no_trouble(tmp_path: Path) -> None:
    """NUL bytes, lone surrogates and very long words, which SentencePiece itself would trip over."""
    texts = ["a\0b " * 50, "\ud800 word " * 50, "x" * 50_000, "plain words here " * 300]
    path = tmp_path / "odd.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    assert train(tmp_path / "t", inputs=[str(path)], vocab_size=275).vocab_size == 275


def test_rejects_or_counts_bad_lines(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    good = json.dumps({"text": "plain words here " * 300}) + "\n"
    path.write_text(good + "{\n" * 4 + '{"text": 1}\n' * 3 + good)
    with pytest.raises(ValueError, match=r"in\.jsonl, line 2: not JSON: .*\(--skip-bad-lines skips such documents\)"):
        train(tmp_path / "t", inputs=[str(path)], vocab_size=275)
    made = train(tmp_path / "t", inputs=[str(path)], vocab_size=275, skip_bad_lines=True)
    assert made.vocab_size == 275 and made.bad_count == 7
    assert [message.partition(": ")[0] for message in made.bad] == [f"{path}, line {line}" for line in range(2, 7)]
    told_lines = list(skipped_lines(made.bad, made.bad_count))
    assert told_lines[4].endswith("line 6: key 'text' holds a int, not a string") and told_lines[5:] == ["  and 2 more"]
    path.write_text("{\n")
    with pytest.raises(ValueError, match=r"no text to train on in 1 input file\(s\), 1 bad lines skipped"):
        train(tmp_path / "u", inputs=[str(path)], skip_bad_lines=True)


def test_rejects_input_without_text(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("\n \n")
    with pytest.raises(ValueError, match="no text to train on"):
        train(tmp_path / "t", inputs=[str(tmp_path / "in.txt")])
