"""Small tokenizers of every kind that the tests of tokenizing by words need, trained on real text."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from megatron_cod.data.tokenizers.choice import TokenizerChoice

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
QWEN = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|")
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + CONTRACTIONS + "?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + CONTRACTIONS + "?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def sentencepiece_model(folder: Path, texts: Sequence[str], **options: Any) -> TokenizerChoice:
    """As Llama's, but for the options given."""
    settings: dict[str, Any] = {
        "vocab_size": 700,
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "minloglevel": 2,
        **options,
    }
    content = io.BytesIO()
    sentences = [text[start : start + 1000] for text in texts for start in range(0, len(text), 1000)]
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(sentences), model_writer=content, **settings)
    path = folder / f"{len(list(folder.iterdir()))}.model"
    path.write_bytes(content.getvalue())
    return TokenizerChoice("SentencePieceTokenizer", path)


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def byte_level(steps: Sequence[pre_tokenizers.PreTokenizer] = (), regex: bool = False) -> Callable[[Tokenizer], None]:
    """Byte-level BPE whose text is split by these steps."""

    def shape(tokenizer: Tokenizer) -> None:
        last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, last])
        tokenizer.decoder = decoders.ByteLevel()

    return shape


def marks_spaces(metaspace: bool) -> Callable[[Tokenizer], None]:
    """As Llama 2's: a mark for each space, no other splitting."""

    def shape(tokenizer: Tokenizer) -> None:
        if metaspace:
            tokenizer.normalizer = None
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        else:
            mark = "\u2581"
            tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(mark), normalizers.Replace(" ", mark)])
            tokenizer.pre_tokenizer = None

    return shape


def huggingface_folder(
    folder: Path, texts: Sequence[str], shape: Callable[[Tokenizer], None], *, of_marks: bool = False, nfc: bool = False
) -> TokenizerChoice:
    """A folder with a BPE that puts <s> before a text and knows two more added tokens."""
    target = folder / f"{len(list(folder.iterdir()))}"
    target.mkdir()
    tokenizer = Tokenizer(
        models.BPE(byte_fallback=of_marks, unk_token="<unk>" if of_marks else None, fuse_unk=of_marks)
    )
    shape(tokenizer)
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    special = ["<unk>", "<s>", "<|end|>", "<|x|>"]
    bytes_of_fallback = [f"<0x{number:02X}>" for number in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=1200,
        special_tokens=special + (bytes_of_fallback if of_marks else []),
        initial_alphabet=[] if of_marks else pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    if of_marks:
        # Trained on words, as the authors of such models did; used on whole texts.
        used = tokenizer.normalizer, tokenizer.pre_tokenizer
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Sequence([]), pre_tokenizers.Metaspace()
        tokenizer.train_from_iterator(texts, trainer)
        definition = json.loads(tokenizer.to_str())
        other = Tokenizer(models.BPE())
        if used[0] is not None:
            other.normalizer = used[0]
        if used[1] is not None:
            other.pre_tokenizer = used[1]
        parts = json.loads(other.to_str())
        definition |= {"normalizer": parts["normalizer"], "pre_tokenizer": parts["pre_tokenizer"]}
        kept = [token for token in definition["added_tokens"] if not token["content"].startswith("<0x")]
        definition["added_tokens"] = kept
        tokenizer = Tokenizer.from_str(json.dumps(definition))
    else:
        tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken("[KEY]", normalized=False)])
    start = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", start)])
    tokenizer.save(str(target / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "<|end|>"}
    (target / "tokenizer_config.json").write_text(json.dumps(config))
    return TokenizerChoice("HuggingFaceTokenizer", target)


def t5_folder(folder: Path, texts: Sequence[str], **options: Any) -> TokenizerChoice:
    """As T5's, in Hugging Face's form: a unigram model of words, after SentencePiece's normalisation."""
    from sentencepiece import sentencepiece_model_pb2
    from transformers import T5Tokenizer

    settings = {"model_type": "unigram", "byte_fallback": False, "normalization_rule_name": "nmt_nfkc", **options}
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    made = sentencepiece_model(folder, texts, **settings, **ids)
    model = sentencepiece_model_pb2.ModelProto.FromString(Path(str(made.model)).read_bytes())
    target = folder / f"{len(list(folder.iterdir()))}"
    T5Tokenizer(
        [(piece.piece, piece.score) for piece in model.pieces],
        _spm_precompiled_charsmap=model.normalizer_spec.precompiled_charsmap,
    ).save_pretrained(target)
    return TokenizerChoice("HuggingFaceTokenizer", target)
