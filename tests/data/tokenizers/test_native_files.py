"""Tokenizer files of Mistral, tiktoken and GPT-2: converted folders have the ids of those libraries; unconverted ones are
refused where what they give depends on the machine."""

import importlib.util
import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest

from megatron_cod.data.tokenizers import native_files, native_reference
from megatron_cod.data.tokenizers.choice import TokenizerChoice
from megatron_cod.data.tokenizers.document_encoder import DocumentEncoder
from megatron_cod.data.tokenizers.native_files import NativeOptions, convert
from megatron_cod.data.tokenizers.tiktoken_encodings import ENCODINGS
from megatron_cod.errors import UserError
from megatron_cod.training.data import hub_tokenizer
from tests.data.tokenizers import native
from tests.data.tokenizers.tokenizer_kinds import LLAMA3

ENCODING = {"<|endoftext|>": 5, "<|x|>": 9}  # behind the last rank


def needs(package: str) -> pytest.MarkDecorator:
    found = importlib.util.find_spec(package) is not None
    return pytest.mark.skipif(not found, reason=f"not installed: {package} (pip install -e '.[other-tokenizers]')")


@pytest.fixture(scope="module")
def bpe(speeches):
    return native.trained(speeches[:4])


@pytest.fixture(scope="module")
def ranks(bpe) -> dict[bytes, int]:
    return native.ranks_of(bpe[1])


@pytest.fixture(scope="module")
def tekken(ranks, tmp_path_factory) -> Path:
    return native.write_tekken(tmp_path_factory.mktemp("mistral"), ranks)


def special(ranks: dict[bytes, int]) -> dict[str, int]:
    return {token: len(ranks) + place for token, place in ENCODING.items()}


def converted(model: Path, output: Path, **options) -> Path:
    convert(model, output, NativeOptions(**options), lambda _: None)
    return output


def texts(speeches: list[str]) -> list[str]:
    chosen = random.Random(3)
    noise = ["".join(chosen.choices(native_reference._ALPHABET, k=30)) for _ in range(100)]
    return [*noise, "It's I'LL 12345\r\n \n  x  ", *(speech[:2000] for speech in speeches[:6])]


def test_tekken_has_the_ids_of_its_ranks(tekken, ranks, speeches, tmp_path):
    """With Mistral's <s> before each text, and without; as preprocessing and Megatron's training read the folder."""
    folder = converted(tekken, tmp_path / "out")
    first = len(native.SPECIAL) + native.UNUSED
    choice = TokenizerChoice("HuggingFaceTokenizer", folder)
    plain = TokenizerChoice("HuggingFaceTokenizer", folder, hf_special_tokens=False)
    with_bos, without, megatron = DocumentEncoder(choice, True), DocumentEncoder(plain, False), choice.build()
    assert with_bos.vocab_size == megatron.vocab_size == first + len(ranks)
    assert with_bos.eod == megatron.eod == native.SPECIAL.index("</s>")
    for text in texts(speeches):
        expected = [first + rank for rank in native.by_ranks(ranks, text)]
        assert without(text).tolist() == expected
        assert with_bos(text).tolist() == [1, *expected, 2]
        assert megatron.tokenize(text) == [1, *expected]


@needs("mistral_common")
def test_tekken_has_the_ids_of_mistral_common(tekken, speeches, tmp_path):
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    theirs = Tekkenizer.from_file(tekken / "tekken.json")
    encoder = DocumentEncoder(TokenizerChoice("HuggingFaceTokenizer", converted(tekken, tmp_path / "out")), False)
    assert encoder.vocab_size == theirs.n_words
    for text in texts(speeches):
        assert encoder(text).tolist() == theirs.encode(text, bos=True, eos=False)


@needs("tiktoken")
def test_a_tiktoken_file_has_the_ids_of_tiktoken(ranks, speeches, tmp_path):
    import tiktoken

    path = native.write_tiktoken(tmp_path / "own.tiktoken", ranks)
    options = {"pattern": native.PATTERN, "special": special(ranks)}
    encoder = DocumentEncoder(
        TokenizerChoice("HuggingFaceTokenizer", converted(path, tmp_path / "out", **options)), True
    )
    theirs = tiktoken.Encoding("own", pat_str=native.PATTERN, mergeable_ranks=ranks, special_tokens=special(ranks))
    assert encoder.eod == theirs.encode_single_token("<|endoftext|>") == len(ranks) + 5
    assert encoder.vocab_size == theirs.n_vocab
    for text in texts(speeches):
        assert encoder(text).tolist() == [*theirs.encode_ordinary(text), encoder.eod]
    assert encoder("a<|x|>").tolist()[-2:] == [len(ranks) + 9, encoder.eod]


@needs("tiktoken")
def test_llama_3s_own_file_is_read_as_it_is(ranks, speeches, tmp_path):
    """A tiktoken file by SentencePiece's name, whose special tokens are in the config beside it."""
    import tiktoken

    native.write_tiktoken(tmp_path / "tokenizer.model", ranks)
    names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    added = {str(len(ranks) + place): {"content": token, "special": True} for place, token in enumerate(names.values())}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **names, "added_tokens_decoder": added}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    encoder = DocumentEncoder(TokenizerChoice("HuggingFaceTokenizer", tmp_path), True)
    theirs = tiktoken.Encoding("a", pat_str=LLAMA3, mergeable_ranks=ranks, special_tokens={})
    assert encoder.eod == len(ranks) + 1
    for text in texts(speeches):
        assert encoder(text).tolist() == [*theirs.encode_ordinary(text), encoder.eod]


@needs("tiktoken")
def test_encodings_are_those_of_tiktoken(ranks, monkeypatch):
    import tiktoken
    from tiktoken_ext import openai_public

    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda *_, **__: ranks)
    chosen = random.Random(4)
    for name in ENCODINGS.keys() - {"qwen"}:
        published = getattr(openai_public, name)()
        assert published["special_tokens"] == ENCODINGS[name].special
        theirs = tiktoken.Encoding("a", pat_str=published["pat_str"], mergeable_ranks=ranks, special_tokens={})
        ours = tiktoken.Encoding("b", pat_str=ENCODINGS[name].pattern, mergeable_ranks=ranks, special_tokens={})
        for _ in range(3000):
            text = "".join(chosen.choices(native_reference._ALPHABET + "'SsLl\u017f", k=chosen.randint(1, 14)))
            assert ours.encode_ordinary(text) == theirs.encode_ordinary(text), (name, text)


@needs("tiktoken")
def test_rejects_what_is_converted_to_other_ids(ranks, tmp_path):
    """A possessive range is no such thing in the expressions of Hugging Face's library: it repeats the range."""
    path = native.write_tiktoken(tmp_path / "own.tiktoken", ranks)
    pattern = native.PATTERN.replace(r"\p{N}", r"\p{N}{1,2}+")
    with pytest.raises(UserError, match=r"is not converted: a text that begins .* by its own library"):
        converted(path, tmp_path / "out", pattern=pattern, special=special(ranks))
    assert sorted(one.name for one in tmp_path.iterdir()) == ["own.tiktoken"]


def test_vocab_and_merges_are_read_as_gpt2s(bpe, speeches, tmp_path):
    bare = native.write_gpt2(tmp_path / "bare", *bpe)
    named = native.write_gpt2(tmp_path / "named", *bpe)
    (named / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(UserError, match=r"holds vocab.json and merges.txt, .*: convert it with megatron-cod convert"):
        DocumentEncoder(TokenizerChoice("HuggingFaceTokenizer", bare), True)
    found, direct = (
        DocumentEncoder(TokenizerChoice("HuggingFaceTokenizer", folder), True)
        for folder in (converted(bare, tmp_path / "out"), named)
    )
    assert found.eod == direct.eod == 0 and found.vocab_size == direct.vocab_size == len(bpe[0])
    for text in texts(speeches):
        assert found(text).tolist() == direct(text).tolist()


@pytest.mark.parametrize(
    ("name", "says"),
    [("tekken.json", "with mistral-common than without"), ("own.tiktoken", "which transformers does not read")],
)
def test_preprocessing_and_training_refuse_what_is_to_be_converted(tekken, ranks, tmp_path, name, says):
    folder = tekken if name == "tekken.json" else native.write_tiktoken(tmp_path / name, ranks).parent
    for model in (folder, folder / name):
        with pytest.raises(UserError, match=f"{says}: convert it with megatron-cod convert tokenizer --model"):
            DocumentEncoder(TokenizerChoice("HuggingFaceTokenizer", model), False)
        asked = SimpleNamespace(tokenizer_type="HuggingFaceTokenizer", tokenizer_model=str(model))
        assert says in (hub_tokenizer.problem(asked) or "")


def test_mistral_common_takes_tekken_before_tokenizer_json(tekken, tmp_path, monkeypatch):
    """Megatron cannot use its class; without it the folder is read as it is."""
    folder = converted(tekken, tmp_path / "out")
    (folder / "tekken.json").write_bytes((tekken / "tekken.json").read_bytes())
    monkeypatch.setattr(native_files, "_has_mistral_common", lambda: False)
    native_files.check_as_it_is(folder)
    monkeypatch.setattr(native_files, "_has_mistral_common", lambda: True)
    with pytest.raises(UserError, match="with mistral-common than without"):
        native_files.check_as_it_is(folder)
    assert (converted(folder, tmp_path / "again") / "tokenizer.json").is_file()


def test_a_sentencepiece_model_is_no_tiktoken_file(sentencepiece_model):
    assert native_files.native_file(sentencepiece_model) is None
    assert native_files.native_file(sentencepiece_model.parent) is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "has ranks alone: give --encoding"),
        ({"encoding": "gpt5"}, "has ranks alone: give --encoding"),
    ],
)
def test_rejects_a_tiktoken_file_of_an_unknown_encoding(ranks, tmp_path, options, says):
    path = native.write_tiktoken(tmp_path / "own.tiktoken", ranks)
    with pytest.raises(UserError, match=says):
        converted(path, tmp_path / "out", **options)


@needs("tiktoken")
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"encoding": "cl100k_base"}, "special tokens are to begin at 100257"),
        ({"pattern": "x", "special": {"<|a|>": 3}}, "special tokens are to begin at 3"),
        ({"pattern": "x"}, "names no token that ends a text: give --eos-token"),
        ({"pattern": "x", "eos": "<|no|>"}, r"--eos-token <\|no\|> is no token"),
    ],
)
def test_rejects_options_that_do_not_fit(ranks, tmp_path, options, says):
    path = native.write_tiktoken(tmp_path / "own.tiktoken", ranks)
    with pytest.raises(UserError, match=says):
        converted(path, tmp_path / "out", **options)


def test_rejects_an_output_that_exists_and_files_that_are_broken(tekken, tmp_path):
    with pytest.raises(UserError, match="exists already"):
        convert(tekken, tmp_path, NativeOptions(), lambda _: None)
    (tmp_path / "tekken.json").write_text('{"config": {}}')
    with pytest.raises(UserError, match="cannot be read: KeyError"):
        converted(tmp_path, tmp_path / "out")
