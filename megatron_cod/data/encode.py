"""Tokenize batches in this process or in several, with results in input order."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field

import numpy as np

from megatron_cod.data.documents import RawBatch, text_of_plain, texts_of_json
from megatron_cod.data.tokenizers import DocumentEncoder

# Batches handed out ahead of the writer, per worker: enough to never wait, few enough to bound memory.
_AHEAD = 3


@dataclass
class EncodedColumn:
    """The documents of a batch under one JSON key.

    `tokens` [sum of lengths], `lengths` [documents], `text_bytes` [documents]; a bad or empty document
    has length 0.
    """

    tokens: np.ndarray
    lengths: list[int]
    text_bytes: list[int]


@dataclass
class EncodedBatch:
    """One column a key, in the order of the keys; `bad` maps a document's place to what is wrong."""

    columns: list[EncodedColumn]
    count: int
    position: int
    bad: dict[int, str] = field(default_factory=dict)


def encode_batch(batch: RawBatch, keys: Sequence[str], encoder: DocumentEncoder, skip_bad: bool) -> EncodedBatch:
    """Tokenize one batch; raises ValueError naming file and line of a bad document unless `skip_bad`."""
    parts: list[list[np.ndarray]] = [[] for _ in keys]
    sizes: list[list[int]] = [[] for _ in keys]
    bad: dict[int, str] = {}
    nothing = np.empty(0, encoder.dtype)
    for place, (line, content) in enumerate(zip(batch.lines, batch.contents, strict=True)):
        texts = [""] * len(keys)
        try:
            if batch.source.format == "text":
                texts = [text_of_plain(content)]
            elif content.strip():
                texts = texts_of_json(content, keys)
            encoded = [text.encode("utf-8") for text in texts]
        except UnicodeEncodeError as error:
            bad[place] = f"holds a lone surrogate at character {error.start}, which UTF-8 cannot hold"
        except ValueError as error:
            bad[place] = str(error)
        if place in bad:
            message = bad[place] = f"{batch.source.path}, line {line}: {bad[place]}"
            if not skip_bad:
                raise ValueError(f"{message} (--skip-bad-lines leaves such documents out)")
            texts, encoded = [""] * len(keys), [b""] * len(keys)
        for column, text in enumerate(texts):
            # White space alone is no document, though some tokenizers would give tokens for it.
            parts[column].append(encoder(text) if text.strip() else nothing)
            sizes[column].append(len(encoded[column]))
    columns = [
        EncodedColumn(np.concatenate(part) if part else nothing, [len(ids) for ids in part], size)
        for part, size in zip(parts, sizes, strict=True)
    ]
    return EncodedBatch(columns, len(batch.contents), batch.position, bad)


def encode_all(
    batches: Iterable[RawBatch], keys: Sequence[str], encoder: DocumentEncoder, skip_bad: bool, workers: int
) -> Generator[EncodedBatch, None, None]:
    """Encode every batch, in order whatever the number of workers.

    With more than one worker, processes are forked, so that they have the tokenizer already and need not
    import Megatron; the threads of this process are idle pools that a worker never touches. Raises
    ValueError as `encode_batch` does, and OSError when a worker process dies.
    """
    if workers == 1:
        for batch in batches:
            yield encode_batch(batch, keys, encoder, skip_bad)
        return
    # A parallel tokenizer inside parallel processes only gets in its own way, and warns about forks.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("fork"), _start_worker, (tuple(keys), encoder, skip_bad)
    )
    waiting: deque[Future[EncodedBatch]] = deque()
    try:
        for batch in batches:
            waiting.append(pool.submit(_work, batch))
            if len(waiting) >= _AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise OSError("a worker process died, perhaps for lack of memory; try fewer --workers") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_worker: tuple[tuple[str, ...], DocumentEncoder, bool]


def _start_worker(keys: tuple[str, ...], encoder: DocumentEncoder, skip_bad: bool) -> None:
    global _worker
    # Ctrl-C reaches the whole group; the parent alone decides, and its workers print nothing.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = (keys, encoder, skip_bad)


def _end_with_parent() -> None:
    """A parent that is killed cannot stop its workers, and they would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(batch: RawBatch) -> EncodedBatch:
    keys, encoder, skip_bad = _worker
    return encode_batch(batch, keys, encoder, skip_bad)
