"""A worker's task: read one part of the input, tokenize its documents, leave them as runs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_cod.data.preprocessing.token_runs import Commit, RunWriter, whole_runs_of_part
from megatron_cod.data.preprocessing.worker_pool import Report
from megatron_cod.data.reading.arrow import Row
from megatron_cod.data.reading.documents import utf8
from megatron_cod.data.reading.inputs import InputFile
from megatron_cod.data.reading.parts import RawBatch, Slice, read_slice, texts_of, where
from megatron_cod.data.reading.skipped import HINT
from megatron_cod.data.tokenizers.document_encoder import DocumentEncoder
from megatron_cod.errors import UserError

_HASHED_AT_ONCE = 1 << 20  # characters
_HUGE = 1 << 24  # bytes of a document


@dataclass(frozen=True)
class Encoding:
    """What workers have in common. limit: documents after which a part may stop. seed: of the shuffle, or
    None."""

    folder: Path
    inputs: Sequence[InputFile]
    parts: Sequence[tuple[Slice, ...]]
    keys: Sequence[str]
    split_on: str
    encoder: DocumentEncoder
    skip_bad: bool = False
    limit: int | None = None
    seed: int | None = None


def encode_part(what: Encoding, number: int, report: Report) -> list[Commit]:
    """The runs of part `number`, those that were there already and those made now.

    Raises UserError naming file and line of a bad document unless they are skipped.
    """
    commits = [run.commit for run in whole_runs_of_part(what.folder, number)]
    if not what.skip_bad and any(commit.bad for commit in commits):
        file, start, line, message = next(example for commit in commits for example in commit.examples)
        raise UserError(f"{where(what.inputs[file], start, line)}: {message} {HINT}")
    if commits and commits[-1].next is None:
        return commits
    begin, resume = commits[-1].next if commits and commits[-1].next else (0, None)
    passed, documents = (commits[-1].input_bytes if commits else 0), sum(commit.documents for commit in commits)
    item = what.encoder.dtype().itemsize
    writer = RunWriter(what.folder, number, len(commits), len(what.keys), item, what.seed)
    for place in range(begin, len(what.parts[number])):
        piece = what.parts[number][place]
        before = sum(each.size for each in what.parts[number][:place])
        for batch in read_slice(what.inputs[piece.file], piece, what.keys, what.split_on, resume):
            count, tokens, text_bytes = _encode_batch(what, piece.file, batch, writer)
            documents += count
            report(max(before + batch.position - passed, 0), count, tokens, text_bytes)
            passed = max(before + batch.position, passed)
            if what.limit is not None and documents >= what.limit:
                return [*commits, writer.commit(None, passed)]
            if writer.is_full:
                after = (place + 1, None) if batch.after is None else (place, batch.after)
                commits.append(writer.commit(after, passed))
        resume = None
    return [*commits, writer.commit(None, passed)]


def _encode_batch(what: Encoding, file: int, batch: RawBatch, writer: RunWriter) -> tuple[int, int, int]:
    """Tokenize a batch and hand its documents to the writer; documents, tokens and bytes of text that came of it."""
    good: list[tuple[int, bytes, list[int]]] = []
    texts: list[str] = []
    for number, content in enumerate(batch.contents):
        batch.contents[number] = b""  # a large document must not be held twice
        if _size(content) > _HUGE:
            what.encoder.forget()
        try:
            found = texts_of(batch.source, content, what.keys)
            del content
            digest, sizes = digest_of(found)
        except ValueError as error:
            if not what.skip_bad:
                raise UserError(f"{where(batch.source, batch.start, batch.lines[number])}: {error} {HINT}") from error
            writer.add_bad(file, batch.start, batch.lines[number], str(error))
            continue
        # White space alone is no document, though some tokenizers would give tokens for it.
        good.append((number, digest, sizes))
        texts.extend("" if text.isspace() else text for text in found)
        del found
    tokens = _tokens(what, batch, [number for number, _, _ in good], texts)
    keys, item = len(what.keys), what.encoder.dtype().itemsize
    documents = lengths = text_bytes = 0
    for place, (number, digest, sizes) in enumerate(good):
        ids = tokens[place * keys : (place + 1) * keys]
        if not any(ids):
            writer.empty += 1
            continue
        sizes = [size if each else 0 for size, each in zip(sizes, ids, strict=True)]
        try:
            writer.add(file, batch.places[number], digest, ids, sizes)
        except ValueError as error:
            raise UserError(f"{where(batch.source, batch.start, batch.lines[number])}: {error}") from None
        documents += 1
        lengths += sum(map(len, ids)) // item
        text_bytes += sum(sizes)
    return documents, lengths, text_bytes


def _size(content: bytes | Row) -> int:
    return sum(len(value or b"") for value in content) if isinstance(content, tuple) else len(content)


def _tokens(what: Encoding, batch: RawBatch, numbers: Sequence[int], texts: list[str]) -> list[bytes | bytearray]:
    try:
        return what.encoder.encode(texts)
    except ValueError:
        for number in range(len(texts)):
            try:
                what.encoder.encode([texts[number]])
            except ValueError as error:
                line = batch.lines[numbers[number // len(what.keys)]]
                raise UserError(f"{where(batch.source, batch.start, line)}: {error}") from None
        raise


def digest_of(texts: Sequence[str]) -> tuple[bytes, list[int]]:
    """A hash (16 bytes) of the texts of a document, and the length of each in UTF-8; of one text it is the BLAKE2b of
    it.

    Raises UserError for half a surrogate pair.
    """
    digest = hashlib.blake2b(digest_size=16)
    sizes = []
    for text in texts:
        size = 0
        for start in range(0, len(text), _HASHED_AT_ONCE):
            content = utf8(text[start : start + _HASHED_AT_ONCE], start)
            digest.update(content)
            size += len(content)
        sizes.append(size)
        if len(texts) > 1:  # so that a word that moves from one text to the next makes a difference
            digest.update(size.to_bytes(8, "big"))
    return digest.digest(), sizes
