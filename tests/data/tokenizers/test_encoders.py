"""Tokenizing by words gives the tokens of whole texts, for every tokenizer that is treated as one where it does."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import transformers.models.auto.tokenization_auto  # noqa: F401
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

# Here, so that the processes in which folders are looked into have them already.
import megatron_cod.data.megatron_api  # noqa: F401
from megatron_cod.data.tokenizers import document_encoder, huggingface_library, word_boundaries, word_cache
from megatron_cod.data.tokenizers.choice import TokenizerChoice
from megatron_cod.data.tokenizers.document_encoder import DocumentEncoder
from tests.data.tokenizers.tokenizer_kinds import (
    LLAMA3,
    O200K,
    QWEN,
    byte_level,
    huggingface_folder,
    marks_spaces,
    sentencepiece_model,
    split,
    t5_folder,
)

BY_WORDS = [
    *("llama", "no-prefix", "split-digits", "no-byte-fallback"),
    *("gpt2", "qwen", "llama3", "o200k", "digits", "nfc", "llama2-metaspace", "llama2-normalizer"),
    *("t5", "t5-own-rules"),
]
WHOLE = ["unigram", "nfkc", "over-words", "suffix", "split-on-b", "words-as-added-tokens"]


@pytest.fixture(scope="module")
def choices(tmp_path_factory: pytest.TempPathFactory, speeches: list[str]):
    folder = tmp_path_factory.mktemp("kinds")
    code = "def f(x):\n    if x:\n        return   y;\n\n\n    b c b d, b e\n" * 50
    texts = [code, *(speech[:20_000] for speech in speeches[:3])]

    @cache
    def make(name: str) -> TokenizerChoice:
        pieces = {
            "llama": {},
            "no-prefix": {"add_dummy_prefix": False},
            "split-digits": {"split_digits": True, "user_defined_symbols": ["<tag>", "##"]},
            "no-byte-fallback": {"byte_fallback": False},
            "unigram": {"model_type": "unigram"},
            "nfkc": {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
            "over-words": {"split_by_whitespace": False},
            "suffix": {"treat_whitespace_as_suffix": True},
        }
        if name in pieces:
            return sentencepiece_model(folder, texts, **pieces[name])
        if name.startswith("llama2"):
            return huggingface_folder(folder, texts, marks_spaces(name == "llama2-metaspace"), of_marks=True)
        if name == "t5":
            return t5_folder(folder, texts)
        if name == "t5-own-rules":  # a space with an acute accent on it is an x
            (folder / "rules.tsv").write_text("20 301\t78\n")
            rules = {"normalization_rule_name": "", "normalization_rule_tsv": str(folder / "rules.tsv")}
            return t5_folder(folder, texts, **rules)
        shapes = {
            "gpt2": byte_level(regex=True),
            "qwen": byte_level([split(QWEN)]),
            "llama3": byte_level([split(LLAMA3)]),
            "o200k": byte_level([split(O200K)]),
            "digits": byte_level([pre_tokenizers.Digits(individual_digits=True)], regex=True),
            "nfc": byte_level([split(QWEN)]),
            "split-on-b": byte_level([split(" b .|" + QWEN)]),
            "words-as-added-tokens": byte_level(regex=True),
        }
        choice = huggingface_folder(folder, texts, shapes[name], nfc=name == "nfc")
        if name == "words-as-added-tokens":
            path = Path(str(choice.model)) / "tokenizer.json"
            path.write_text(path.read_text().replace('"[KEY]"', '"two words"'))
        return choice

    return make


@pytest.fixture(scope="module")
def pairs(choices):
    """An encoder by words and one of whole texts."""

    @cache
    def make(name: str) -> tuple[DocumentEncoder, DocumentEncoder]:
        return DocumentEncoder(choices(name), True), DocumentEncoder(choices(name), True, whole_texts=True)

    return make


FAST = ["llama", "no-prefix", "gpt2", "digits", "llama3", "nfc"]
"""In ``make test``; the other tokenizers are slow."""

# What tokenizers and their normalisers treat in a way of their own.
PIECES = [
    *(" ", "  ", "   ", "\n", "\n\n", " \n", "\n ", "\t", "\t ", "\r\n"),
    *("\u00a0", "\u3000", "\u2028", "\u200b", "\x1c", "\x85"),
    *("\x0b", "\x7f", "\x8f", "\u00b4", "\u00ad", "\u0600", "\u0e33", "\u200d", "\ufb01", "</s>", "<extra_id_7>"),
    *("the", "The", "state", "union", "of", "America", "e", "E", "e" * 70, "two words", "b c"),
    *("\u00e9", "e\u0301", "\u0301", "\u6f22\u5b57", "\u0440\u0443", "\U0001f600", "\u212a", "\u226e"),
    *("1", "2001", "12345", ".", ",", "!?", "...", "(", ")", "/", "-", "_", "##"),
    *("'", "''", "'s", "don't", "'ll", "\u2019s"),
    *("<s>", "<|x|>", "[KEY]", "<", "|", "\u2581", "\u2581\u2581", "\u0120", "\u010a", "\0", "<tag>", "<0x0A>"),
]
texts = st.lists(st.sampled_from(PIECES), max_size=25).map("".join).filter(lambda text: bool(text.strip()))


@pytest.mark.parametrize("name", BY_WORDS)
@given(batch=st.lists(texts, min_size=1, max_size=4))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.slow_except(*FAST)
def test_words_give_the_tokens_of_the_text(pairs, name: str, batch: list[str]) -> None:
    by_words, whole = pairs(name)
    assert by_words.by_words and not whole.by_words
    assert by_words.encode(batch) == whole.encode(batch)


@pytest.mark.parametrize("name", BY_WORDS)
@pytest.mark.slow_except(*FAST)
def test_real_text_by_words(pairs, speeches: list[str], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a memory so small that it forgets, and pieces so small that a text has many."""
    monkeypatch.setattr(word_cache, "_MOST_WORDS", 500)
    monkeypatch.setattr(word_cache, "_WINDOW", 3000)
    by_words, whole = pairs(name)
    some = [speech[:12_000] for speech in speeches]
    some.append("  ".join(speeches[0][:9000].split()))
    assert by_words.encode(some) == whole.encode(some)


@pytest.mark.parametrize("name", BY_WORDS)
def test_is_faster_than_whole_texts(pairs, speeches: list[str], name: str) -> None:
    """Real text is not left to the tokenizer: that would be right too, but slow."""
    by_words, _ = pairs(name)
    left = by_words._words(speeches[:4])  # type: ignore[misc]
    assert None not in left


@pytest.mark.parametrize("name", WHOLE)
def test_other_tokenizers_get_whole_texts(choices, name: str) -> None:
    assert not DocumentEncoder(choices(name), True).by_words


def taken_as_safe(monkeypatch: pytest.MonkeyPatch, choice: TokenizerChoice) -> DocumentEncoder:
    """A mutant: an encoder by words, whatever the tokenizer is like."""
    monkeypatch.setattr(word_boundaries, "pieces_end_before_marks", lambda pieces: True)
    monkeypatch.setattr(word_boundaries, "is_safe_byte_level", lambda definition: True)
    monkeypatch.setattr(huggingface_library, "_described", lambda choice, times: huggingface_library._describe(choice))
    return DocumentEncoder(choice, True)


@pytest.mark.parametrize("name", ["over-words", "split-on-b"])
def test_other_tokenizers_need_whole_texts(
    choices, speeches: list[str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = DocumentEncoder(choices(name), True)
    mutant = taken_as_safe(monkeypatch, choices(name))
    assert mutant.by_words
    monkeypatch.setattr(document_encoder, "_COMPARE_EVERY", 1 << 30)
    mutant._seen = 1
    some = [speech[:5000] + " b c d" for speech in speeches[:3]]
    assert mutant.encode(some) != whole.encode(some)


def test_a_difference_is_noticed(choices, speeches: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    mutant = taken_as_safe(monkeypatch, choices("over-words"))
    with pytest.raises(ValueError, match=r"are not those of its words .*--whole-texts"):
        mutant.encode([speeches[0][:5000]])


@pytest.mark.parametrize(
    ("name", "mutant"),
    [
        ("gpt2", "every space is a cut"),
        ("llama", "every space is a cut"),
        ("qwen", "words are cut at line ends"),
        ("gpt2", "words are cut at apostrophes"),
        ("llama", "no head"),
        ("t5-own-rules", "spaces in graphemes are cuts"),
        ("t5", "all words are tokenized together"),
    ],
)
def test_mutants_give_other_tokens(choices, pairs, name: str, mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = DocumentEncoder(choices(name), True)
    words = changed._words
    assert words is not None
    monkeypatch.setattr(document_encoder, "_COMPARE_EVERY", 1 << 30)
    changed._seen = 1
    if mutant == "every space is a cut":
        monkeypatch.setattr(words, "_no_cut", re.compile("(?!)"))
    elif mutant == "no head":
        object.__setattr__(words._how, "head", "")
    elif mutant == "spaces in graphemes are cuts":
        object.__setattr__(words._how, "whole", None)
    elif mutant == "all words are tokenized together":
        monkeypatch.setattr(words, "_keeps_its_cuts", lambda word: True)
    else:
        pattern = r"[^\n]+|\n+" if mutant == "words are cut at line ends" else r"[^']+|'"
        object.__setattr__(words._how, "parts", re.compile(pattern))
    texts = ["The   state  of", "x:\n        return   y;\n\n\n    b", "we don't,\nthey'll", "state"]
    texts += ["we \u0301 are", "a state", "the\u00b4union \x8f of", "of \x8f the\u00b4union"]
    assert changed.encode(texts) != pairs(name)[1].encode(texts)


def test_an_error_is_not_remembered_as_a_word(choices, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = DocumentEncoder(choices("llama"), False)
    good = encoder.encode(["state of the union"])
    monkeypatch.setattr(encoder, "vocab_size", 300)
    with pytest.raises(ValueError, match="the tokenizer gave id"):
        encoder.encode(["Americans together"])
    monkeypatch.setattr(encoder, "vocab_size", 700)
    assert encoder.encode(["state of the union"]) == good
    assert encoder.encode(["Americans together"]) == DocumentEncoder(choices("llama"), False).encode(
        ["Americans together"]
    )


def test_a_huge_text_reaches_an_unsafe_tokenizer_in_pieces(choices, speeches: list[str], monkeypatch) -> None:
    encoder = DocumentEncoder(choices("unigram"), True)
    seen: list[str] = []
    whole = encoder._whole
    monkeypatch.setattr(encoder, "_whole", lambda text: (seen.append(text), whole(text))[1])
    text = speeches[0][:10_000] + "x" * 3000 + speeches[1][:5000]
    expected = encoder(text)
    monkeypatch.setattr(document_encoder, "WHOLE_CHARACTERS", 1000)
    seen.clear()
    pieces = encoder(text)
    assert "".join(seen) == text and max(map(len, seen)) <= 1000
    assert sum(len(piece) == 1000 for piece in seen) >= 2  # where there is no space
    # Here the tokens differ, if at all, only where a text without spaces was cut.
    assert abs(len(pieces) - len(expected)) <= 20
    assert pieces[-1] == encoder.eod


def test_ids_take_two_bytes_below_65500_and_four_above(choices, monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron_cod.data.megatron_api import DType

    for size in (257, 65499, 65500, 200_000):
        library = word_cache.Library(size, size - 1, lambda text: [0, len(text), 1])
        monkeypatch.setattr(document_encoder, "load_library", lambda choice, library=library: library)
        encoder = DocumentEncoder(TokenizerChoice("ByteLevelTokenizer"), True)
        assert encoder.dtype is DType.optimal_dtype(size)
        assert encoder("abc").tolist() == [0, 3, 1, size - 1]
        assert np.frombuffer(encoder.encode(["abc"])[0], encoder.dtype).tolist() == [0, 3, 1, size - 1]
