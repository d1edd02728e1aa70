"""Train a SentencePiece model on the inputs that preprocessing reads."""

from __future__ import annotations

import io
import random
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece

from megatron_cod.common.files import replacing
from megatron_cod.data.reading.inputs import InputFile, find_inputs
from megatron_cod.data.reading.parts import RawBatch, read_batches, texts_of, where
from megatron_cod.data.reading.skipped import HINT, MOST_EXAMPLES
from megatron_cod.errors import UserError

# SentencePiece omits sentences above 4192 bytes without a word; documents are cut well below that.
_SENTENCE_CHARACTERS = 1000
# Every so many sentences one is kept from training, up to so many bytes, to measure on.
_HOLDOUT_EVERY = 50
_HOLDOUT_BYTES = 1 << 18


@dataclass(frozen=True)
class TokenizerTraining:
    """What to train. Special pieces get the ids 0, 1, 2, ... in the order unk, bos, eos, pad, mask; an
    empty name omits one (unk and eos must be there: Megatron takes eos as end of document)."""

    inputs: Sequence[str]
    output_prefix: str
    vocab_size: int = 32000
    model_type: str = "bpe"
    character_coverage: float = 0.9995
    byte_fallback: bool = True
    split_digits: bool = True
    normalization: str = "identity"
    unk_piece: str = "<unk>"
    bos_piece: str = "<s>"
    eos_piece: str = "</s>"
    pad_piece: str = "<pad>"
    mask_piece: str = ""
    user_defined: Sequence[str] = ()
    max_sentences: int = 2_000_000
    seed: int = 1234
    threads: int = 4
    json_key: str = "text"
    input_format: str = "auto"
    skip_bad_lines: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class TrainedTokenizer:
    """`bytes_per_token` is on text kept from training; None when there was too little text. `bad` are the messages of
    the first bad documents skipped, `bad_count` is how many there were."""

    model: Path
    vocab: Path
    vocab_size: int
    bytes_per_token: float | None
    holdout_bytes: int
    seconds: float
    bad: list[str]
    bad_count: int


class _Bad:
    """Counts documents that cannot be read, or raises UserError for the first unless they are skipped."""

    def __init__(self, skipped: bool) -> None:
        self._skipped = skipped
        self.examples: list[str] = []
        self.count = 0

    def one_more(self, batch: RawBatch, line: int, error: ValueError) -> None:
        if not self._skipped:
            raise UserError(f"{where(batch.source, batch.start, line)}: {error} {HINT}") from error
        self.count += 1
        if len(self.examples) < MOST_EXAMPLES:
            self.examples.append(f"{where(batch.source, batch.start, line)}: {error}")


def train_tokenizer(job: TokenizerTraining) -> TrainedTokenizer:
    """Train and write PREFIX.model and PREFIX.vocab.

    The pieces depend on the text, the options and the seed. Raises UserError for bad options or text, and
    for a vocabulary larger than the text can give.
    """
    start = time.monotonic()
    inputs = find_inputs(job.inputs, job.input_format)
    model_path, vocab_path = Path(f"{job.output_prefix}.model"), Path(f"{job.output_prefix}.vocab")
    for path in (model_path, vocab_path):
        if path.exists() and not job.overwrite:
            raise UserError(f"output exists already: {path}; choose another --output-prefix or give --overwrite")
    holdout: list[str] = []
    buffer = io.BytesIO()
    options = _trainer_options(job)
    bad = _Bad(job.skip_bad_lines)
    sentences = _keep_some(_sentences(inputs, job.json_key, bad), holdout)
    sample = _sample(sentences, job.max_sentences, job.seed)
    if not sample:
        raise UserError(f"no text to train on in {len(inputs)} input file(s), {bad.count} bad lines skipped")
    try:
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(sample), model_writer=buffer, **options)
    except (RuntimeError, OSError) as error:
        raise UserError(f"SentencePiece: {_reason(error)}") from error
    processor = sentencepiece.SentencePieceProcessor(model_proto=buffer.getvalue())

    model_path.parent.mkdir(parents=True, exist_ok=True)
    size = processor.get_piece_size()
    rows = [f"{processor.id_to_piece(i)}\t{processor.get_score(i):g}\n" for i in range(size)]
    for path, content in ((vocab_path, "".join(rows).encode("utf-8")), (model_path, buffer.getvalue())):
        with replacing(path) as part:
            part.write_bytes(content)
            if path is model_path:
                _check_written(part, processor, sample[:20])
    held_bytes = sum(len(text.encode("utf-8")) for text in holdout)
    held_tokens = sum(len(processor.encode(text)) for text in holdout)
    ratio = held_bytes / held_tokens if held_tokens else None
    seconds = time.monotonic() - start
    return TrainedTokenizer(model_path, vocab_path, size, ratio, held_bytes, seconds, bad.examples, bad.count)


def _check_written(path: Path, trained: Any, texts: Sequence[str]) -> None:
    """UserError unless the file gives the pieces of the trained model."""
    try:
        same = sentencepiece.SentencePieceProcessor(model_file=str(path)).encode(list(texts)) == trained.encode(
            list(texts)
        )
    except (RuntimeError, OSError) as error:
        path.unlink()
        raise UserError(f"{path} cannot be read again: {_reason(error)}") from error
    if not same:
        path.unlink()
        raise UserError(f"{path} read again gives other pieces than the trained model")


def _trainer_options(job: TokenizerTraining) -> dict[str, Any]:
    if not job.unk_piece or not job.eos_piece:
        raise UserError("--unk-piece and --eos-piece cannot be empty: SentencePiece needs one, Megatron the other")
    pieces = {"unk": job.unk_piece, "bos": job.bos_piece, "eos": job.eos_piece, "pad": job.pad_piece}
    named = [piece for piece in (*pieces.values(), job.mask_piece, *job.user_defined) if piece]
    if len(set(named)) != len(named):
        raise UserError(f"special pieces must differ, found {' '.join(named)}")
    if not 0 < job.character_coverage <= 1:
        raise UserError(f"--character-coverage must be above 0 and at most 1, found {job.character_coverage}")
    for name in ("vocab_size", "max_sentences", "threads"):
        if getattr(job, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be 1 or more, found {getattr(job, name)}")
    least = len(named) + 256 * job.byte_fallback
    if job.vocab_size <= least:
        raise UserError(f"--vocab-size {job.vocab_size} must be above {least}: special pieces and byte fallback")
    keep_spaces = job.normalization == "identity"
    options: dict[str, Any] = {
        "vocab_size": job.vocab_size,
        "model_type": job.model_type,
        "character_coverage": job.character_coverage,
        "byte_fallback": job.byte_fallback,
        "split_digits": job.split_digits,
        "normalization_rule_name": job.normalization,
        # Language models want their text back as it was: runs of spaces count in code and tables.
        "remove_extra_whitespaces": not keep_spaces,
        "allow_whitespace_only_pieces": keep_spaces,
        "control_symbols": [job.mask_piece] if job.mask_piece else [],
        "user_defined_symbols": list(job.user_defined),
        "num_threads": job.threads,
        "minloglevel": 2,
    }
    number = 0
    for name, piece in pieces.items():
        options[f"{name}_id"] = number if piece else -1
        number += bool(piece)
        if piece:
            options[f"{name}_piece"] = piece
    return options


def _sentences(inputs: Sequence[InputFile], json_key: str, bad: _Bad) -> Iterator[str]:
    """Lines of all documents, long ones cut at white space."""
    cut = re.compile(rf"\S.{{0,{_SENTENCE_CHARACTERS}}}(?=\s|$)|\S{{1,{_SENTENCE_CHARACTERS}}}")
    for batch in read_batches(inputs, "line", [json_key]):
        for line, content in zip(batch.lines, batch.contents, strict=True):
            try:
                text = texts_of(batch.source, content, [json_key])[0]
            except ValueError as error:
                bad.one_more(batch, line, error)
                continue
            # NUL and lone surrogates cannot be passed to SentencePiece.
            text = text.encode("utf-8", "ignore").decode("utf-8").replace("\0", " ")
            for part in text.splitlines():
                if len(part) > _SENTENCE_CHARACTERS:
                    yield from cut.findall(part)
                elif part.strip():
                    yield part


def _keep_some(sentences: Iterable[str], holdout: list[str]) -> Iterator[str]:
    held = 0
    for number, sentence in enumerate(sentences, start=1):
        if number % _HOLDOUT_EVERY == 0 and held < _HOLDOUT_BYTES:
            holdout.append(sentence)
            held += len(sentence.encode("utf-8"))
        else:
            yield sentence


def _sample(sentences: Iterable[str], size: int, seed: int) -> list[str]:
    """At most `size` sentences, each as likely as any other; SentencePiece's own sampling has no seed."""
    generator = random.Random(seed)
    sample: list[str] = []
    for number, sentence in enumerate(sentences):
        if number < size:
            sample.append(sentence)
        elif (place := generator.randrange(number + 1)) < size:
            sample[place] = sentence
    return sample


def _reason(error: Exception) -> str:
    """SentencePiece's message without its own source location."""
    return re.sub(r"^\w+: \S+\(\d+\) \[.*?\]\s*", "", " ".join(str(error).split())) or "training failed"
