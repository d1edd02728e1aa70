"""The pieces of ASCII text are those of the tokenizer's own splitting, and so are the ids."""

from __future__ import annotations

import json
import string

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from megatron_cod.data.tokenizers import ascii_bpe
from megatron_cod.data.tokenizers.ascii_bpe import AsciiBpe, ascii_pattern
from megatron_cod.data.tokenizers.document_encoder import DocumentEncoder
from tests.data.tokenizers.tokenizer_kinds import LLAMA3, O200K, QWEN, byte_level, huggingface_folder, split

SHAPES = {
    "gpt2": byte_level(regex=True),
    "qwen": byte_level([split(QWEN)]),
    "llama3": byte_level([split(LLAMA3)]),
    "o200k": byte_level([split(O200K)]),
}
WORDS = [
    *(" ", "  ", "   ", "\n", "\n\n", " \n", "\t", "\t ", "\r\n", "\r", "\x0b", "\x0c"),
    *("the", "The", "DBCluster", "toString", "HTTP", "e", "E", "1", "2001", "12345", "3.14", "0x1F"),
    *("'s", "'S", "don't", "WE'LL", "'", "''", "'re", ".", ",", "!?", "...", "(", ")", "/", "//", "-", "_", "##", "\\"),
]
PLAIN = {*string.ascii_letters, *string.digits, *string.punctuation, *string.whitespace}
texts = st.lists(st.sampled_from(WORDS) | st.characters(codec="ascii"), min_size=1, max_size=30).map("".join)


def trained(shape, alphabet: list[str] | None = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    shape(tokenizer)
    alphabet = pre_tokenizers.ByteLevel.alphabet() if alphabet is None else alphabet
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["".join(WORDS[n:] + WORDS[:n]) for n in range(len(WORDS))], trainer)
    return tokenizer


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    return {name: trained(shape) for name, shape in SHAPES.items()}


def quick(tokenizer: Tokenizer) -> AsciiBpe:
    definition = json.loads(tokenizer.to_str())
    # As real tokenizers of this kind are written.
    steps = definition["pre_tokenizer"]
    if steps["type"] == "Sequence" and len(steps["pretokenizers"]) == 1:
        definition["pre_tokenizer"] = steps["pretokenizers"][0]
    pattern = ascii_pattern(definition)
    assert pattern is not None
    return AsciiBpe(definition, pattern)


def agree(tokenizer: Tokenizer, ours: AsciiBpe, batch: list[str]) -> None:
    """The same pieces and ids; nothing where there is a control character."""
    plain = [text for text in batch if set(text) <= PLAIN]
    for text in batch:
        if text not in plain:
            assert ours.one(text) is None and ours.several([text]) is None
            continue
        pieces = tokenizer.pre_tokenizer.pre_tokenize_str(text)
        assert ours._pieces(text) == [text[start:end] for _, (start, end) in pieces]
        assert ours.one(text) == tokenizer.encode(text).ids
    if plain:
        ids, counts = ours.several(plain)
        start = 0
        for text, count in zip(plain, counts, strict=True):
            assert list(ids[start : start + count]) == tokenizer.encode(text).ids
            start += count
        assert start == len(ids)


@pytest.mark.slow_except("llama3", "qwen")
@pytest.mark.parametrize("name", SHAPES)
@given(batch=st.lists(texts, min_size=1, max_size=5))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_pieces_and_ids_are_the_tokenizers(tokenizers, name: str, batch: list[str]) -> None:
    agree(tokenizers[name], quick(tokenizers[name]), batch)


BATCH = ["the  state ", "toString DBCluster 12345", "WE'LLx  don't\n\n  x", "a\r\n!?\n"]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("gpt2", {r"\s+(?!\S)|": ""}),
        ("qwen", {r"|[0-9]|": "|[0-9]+|"}),
        ("llama3", {"{1,3}": "{1,2}"}),
        ("llama3", {"(?i:'s": "(?:'s"}),
        ("o200k", {"[A-Z]": "[A-Za-z]"}),
    ],
)
def test_mutants_give_other_pieces(tokenizers, monkeypatch: pytest.MonkeyPatch, name: str, change: dict) -> None:
    agree(tokenizers[name], quick(tokenizers[name]), BATCH)
    ((old, new),) = change.items()
    right = ascii_bpe.ascii_pattern

    def mutant(definition):
        pattern = right(definition)
        assert old in pattern
        return pattern.replace(old, new)

    monkeypatch.setitem(globals(), "ascii_pattern", mutant)
    with pytest.raises(AssertionError):
        agree(tokenizers[name], quick(tokenizers[name]), BATCH)


def test_leaves_other_text_to_tokenizer(tokenizers) -> None:
    ours = quick(tokenizers["qwen"])
    assert ours.one("caf\u00e9") is None and ours.several(["cafe", "caf\u00e9"]) is None and ours.one("a\x1cb") is None
    # A character that no alternative takes, and one that has no token.
    definition = json.loads(tokenizers["qwen"].to_str())
    assert AsciiBpe(definition, "[a-z]+").one("a b") is None
    poor = trained(byte_level([split(QWEN)]), alphabet=[])
    assert "~" not in poor.get_vocab() and quick(poor).several(["a~", "b"]) is None


def test_other_ways_of_splitting_have_no_pattern() -> None:
    digits = byte_level([pre_tokenizers.Digits(individual_digits=True)], regex=True)
    for shape in (digits, byte_level([split(QWEN), split(LLAMA3)])):
        assert ascii_pattern(json.loads(trained(shape).to_str())) is None


def test_new_words_of_a_text_go_this_way(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    choice = huggingface_folder(tmp_path, ["the state of the union"], byte_level([split(QWEN)]), nfc=True)
    taken: list[str] = []
    for name in ("one", "several"):
        right = getattr(AsciiBpe, name)

        def noted(self: AsciiBpe, what, right=right):
            found = right(self, what)
            taken.extend(() if found is None else [what] if isinstance(what, str) else what)
            return found

        monkeypatch.setattr(AsciiBpe, name, noted)
    encoder = DocumentEncoder(choice, False)
    encoder.encode(["A caf\u00e9 (in the state) of\tx"])
    assert taken == [" state (in the of\tx", "A", ")"]  # all but one word
