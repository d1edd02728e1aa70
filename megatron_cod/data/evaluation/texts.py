"""Raw text -> sets of tokens, with the tokenizer of the model, a set for each value of a JSON field where one is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from megatron_cod.data.evaluation.token_sets import Source, TokenSet
from megatron_cod.data.reading.compression import open_input
from megatron_cod.data.reading.documents import cut_documents, json_value, text_of_plain, utf8
from megatron_cod.data.reading.inputs import InputFile, find_inputs
from megatron_cod.errors import UserError

Log = Callable[[str], None]
_SHOWN = 5
_NO_DOMAIN = "(none)"


@dataclass(frozen=True)
class TextReading:
    """How text becomes tokens."""

    encode: Callable[[str], Sequence[int]]
    """Ids of a text."""
    vocabulary: int
    """Ids are below it."""
    end: int | None = None
    """The id behind each document, once; None for none."""
    json_key: str = "text"
    domain_key: str | None = None
    """JSON field whose values become sets of their own; that of an empty value is named (none)."""
    skip_bad: bool = False
    """Skip documents that cannot be read; otherwise the first one is an error."""


@dataclass
class _Collected:
    parts: list[np.ndarray] = field(default_factory=list)
    text_bytes: int = 0


def read_texts(source: Source, reading: TextReading, log: Log) -> list[TokenSet]:
    """The sets of one source, in order of appearance. UserError, with file and line, for what is unreadable."""
    found: dict[str, _Collected] = {}
    bad, empty = [], 0
    for file in find_inputs([source.path], log=log):
        if file.format not in ("jsonl", "text"):
            raise UserError(f"{file.path}: evaluation reads JSON lines and plain text; make .bin/.idx of the others")
        for line, content in _documents(file):
            if not content.strip():
                empty += 1
                continue
            try:
                domain, text = _text(content, file, reading)
                ids = _ids(text, reading)
            except ValueError as error:
                bad.append(f"{file.path}, line {line}: {error}")
                if not reading.skip_bad:
                    raise UserError(f"{bad[0]} (--eval-skip-bad-lines skips such documents)") from None
                continue
            if not text.strip() or not len(ids):
                empty += 1
                continue
            held = found.setdefault(domain, _Collected())
            held.parts.append(ids)
            held.text_bytes += len(text.encode("utf-8"))
    if bad or empty:
        log(f"{source.name}: {empty:,} empty and {len(bad):,} bad documents skipped")
        for text in bad[:_SHOWN]:
            log(f"  skipped: {text}")
    if not found:
        raise UserError(f"no documents in {source.path}: {empty} empty, {len(bad)} bad")
    return [_set(source, domain, held) for domain, held in found.items()]


def _documents(file: InputFile) -> Iterator[tuple[int, bytes]]:
    with open_input(file.path) as stream:
        yield from cut_documents(stream.content, "line" if file.format == "jsonl" else "file")


def _text(content: bytes, file: InputFile, reading: TextReading) -> tuple[str, str]:
    """(domain, text) of one document; the domain is '' if none is requested."""
    if file.format == "text":
        return "", text_of_plain(content)
    record = json_value(content)
    if not isinstance(record, dict):
        raise UserError(f"needs a JSON object on each line, found a {type(record).__name__}")
    keys = [reading.json_key, *([reading.domain_key] if reading.domain_key else [])]
    for key in keys:
        if not isinstance(record.get(key), str):
            there = f"holds a {type(record[key]).__name__}" if key in record else "is missing"
            raise UserError(f"key {key!r} {there} (keys here: {', '.join(list(record)[:8]) or 'none'})")
    if not reading.domain_key:
        return "", record[reading.json_key]
    domain = record[reading.domain_key] or _NO_DOMAIN
    try:
        utf8(domain)
    except ValueError as error:
        raise UserError(f"key {reading.domain_key!r} {error}") from None
    return domain, record[reading.json_key]


def _ids(text: str, reading: TextReading) -> np.ndarray:
    utf8(text)
    ids = np.array(reading.encode(text), np.int64)
    if len(ids) and (ids.min() < 0 or ids.max() >= reading.vocabulary):
        raise UserError(
            f"the tokenizer gave id {int(ids.max())}, the model has ids 0 to {reading.vocabulary - 1}: they do not fit"
        )
    if reading.end is not None and len(ids) and ids[-1] != reading.end:
        ids = np.append(ids, reading.end)
    return ids.astype(np.int32)


def _set(source: Source, domain: str, held: _Collected) -> TokenSet:
    name = f"{source.name}/{domain}" if domain else source.name
    starts = np.concatenate([[0], np.cumsum([len(part) for part in held.parts], dtype=np.int64)])
    return TokenSet(name, source.name, np.concatenate(held.parts), starts, held.text_bytes)
