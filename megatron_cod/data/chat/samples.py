"""Tokenized conversations in memory, how they came to be there, and what was omitted from them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from megatron_cod.data.chat.chat_format import ChatFormat
from megatron_cod.data.chat.conversations import BadLine, Conversation, read_conversations
from megatron_cod.errors import UserError

TOO_LONG = ("error", "truncate", "drop")
_SHOWN = 5
_SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True)
class Reading:
    """How files become samples."""

    seq_length: int
    too_long: str = "error"
    """Of ``TOO_LONG``: what happens to a sample that does not fit into ``seq_length`` positions."""
    layout: str = "auto"
    skip_bad: bool = False
    """Skip lines that cannot be used; otherwise the first one is an error."""


@dataclass
class Counts:
    """What happened to the conversations of some files."""

    kept: int = 0
    truncated: int = 0
    dropped: int = 0
    """Too long, or truncated to nothing that is trained."""
    bad: int = 0
    longest: int = 0
    """Positions that the longest one takes."""
    longest_at: str = ""
    first: str = ""
    """The first conversation as the model sees it, answers between [[ and ]], to check the template."""
    unread: dict[str, int] = field(default_factory=dict)
    """Keys that nothing reads and that may be about training -> how many conversations have them."""
    shown: list[str] = field(default_factory=list)
    """The first bad lines, and what is wrong with them."""


@dataclass(frozen=True)
class Samples:
    """ids, trained: all samples one behind the other, [tokens]; starts: where each begins, and the end, [samples + 1]."""

    ids: np.ndarray
    trained: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids, trained) of one sample, [n] each."""
        part = slice(self.starts[number], self.starts[number + 1])
        return self.ids[part], self.trained[part]

    def positions(self) -> np.ndarray:
        """How many positions of a row each sample takes, [samples]: one less than it has tokens, the last only a label."""
        return np.diff(self.starts) - 1

    def answer_tokens(self) -> int:
        """How many labels are trained."""
        return int(self.trained.sum() - self.trained[self.starts[:-1]].sum())

    def part(self, numbers: Sequence[int] | np.ndarray) -> Samples:
        """Some of the samples, in the order of ``numbers``."""
        return _gathered(self[number] for number in numbers)


def _gathered(samples: Iterable[tuple[np.ndarray, np.ndarray]]) -> Samples:
    ids, trained, starts = [np.zeros(0, np.int32)], [np.zeros(0, bool)], [0]
    for one, mine in samples:
        ids.append(one)
        trained.append(mine)
        starts.append(starts[-1] + len(one))
    return Samples(np.concatenate(ids), np.concatenate(trained), np.array(starts, np.int64))


def fitted(ids: list[int], trained: list[bool], reading: Reading) -> tuple[np.ndarray, np.ndarray] | None:
    """A sample cut to ``seq_length`` positions; None where nothing trained is left."""
    limit = reading.seq_length + 1
    if not any(trained[1:limit]):
        return None
    return np.array(ids[:limit], np.int32), np.array(trained[:limit], bool)


class _ProgressLog:
    """A progress line now and then."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log, self._began, self._reported, self._done = log, time.monotonic(), time.monotonic(), 0

    def one_more(self) -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._reported >= _SECONDS_BETWEEN_LINES:
            self._reported = now
            self._log(f"tokenized {self._done:,} conversations, {self._done / (now - self._began):,.0f} a second")


def read_samples(
    files: Sequence[str], chat: ChatFormat, reading: Reading, log: Callable[[str], None] = lambda _: None
) -> tuple[Samples, Counts]:
    """Every conversation of the files as a sample.

    UserError, naming file and line, for a bad line unless those are skipped, for an answer that gives no token, for one
    too long where that is an error (all are counted first), and when nothing is left.
    """
    counts, progress = Counts(), _ProgressLog(log)

    def bad(error: BadLine) -> None:
        if not reading.skip_bad:
            raise error
        counts.bad += 1
        counts.shown += [str(error)] if len(counts.shown) < _SHOWN else []

    def samples() -> Iterable[tuple[np.ndarray, np.ndarray]]:
        for conversation in read_conversations(files, reading.layout, bad, log):
            progress.one_more()
            try:
                ids, trained = _encoded(conversation, chat)
                counts.first = counts.first or _marked(chat, conversation)
            except BadLine as error:
                bad(error)
                continue
            sample = _counted(ids, trained, conversation.place, reading, counts)
            if sample is not None:
                _note_unread(conversation, chat, counts)
                yield sample

    found = _gathered(samples())
    names = " ".join(files)
    if reading.too_long == "error" and counts.dropped + counts.truncated:
        raise UserError(
            f"{names}: {counts.dropped + counts.truncated} of {counts.kept + counts.dropped} conversations do not fit into "
            f"--seq-length {reading.seq_length}, the longest takes {counts.longest} ({counts.longest_at}); give "
            "--sft-too-long truncate or drop, or a longer row"
        )
    if not len(found):
        raise UserError(f"{names}: no conversation is left to train on ({counts.dropped} too long, {counts.bad} bad)")
    return found, counts


def _encoded(conversation: Conversation, chat: ChatFormat) -> tuple[list[int], list[bool]]:
    try:
        ids, trained = chat.encode(conversation.messages, conversation.chat.tools)
        if not any(trained[1:]):
            raise UserError("the chat template leaves no token of an answer to train on")
    except ValueError as error:
        raise BadLine(f"{conversation.place}: {error}") from None
    return ids, trained


def _note_unread(conversation: Conversation, chat: ChatFormat, counts: Counts) -> None:
    read = chat.template.reads
    found = [f"'{key}'" for key in conversation.chat.unread]
    found += [f"'{key}' of a message" for key in conversation.chat.for_templates if not read(key)]
    found += ["'tools'"] if conversation.chat.tools and not read("tools") else []
    for key in found:
        counts.unread[key] = counts.unread.get(key, 0) + 1


def _marked(chat: ChatFormat, conversation: Conversation) -> str:
    text, spans = chat.answers(conversation.messages, conversation.chat.tools)
    for start, end in reversed(spans):
        text = f"{text[:start]}[[{text[start:end]}]]{text[end:]}"
    return text


def _counted(
    ids: list[int], trained: list[bool], place: str, reading: Reading, counts: Counts
) -> tuple[np.ndarray, np.ndarray] | None:
    """The sample as it is kept, or None; what happened to it is counted."""
    positions = len(ids) - 1
    if positions > counts.longest:
        counts.longest, counts.longest_at = positions, place
    fits = positions <= reading.seq_length
    sample = None if not fits and reading.too_long == "drop" else fitted(ids, trained, reading)
    if sample is None:
        counts.dropped += 1
        return None
    counts.kept += 1
    counts.truncated += not fits
    return sample


def held_out(samples: Samples, share: float) -> tuple[Samples, Samples]:
    """(the others, about ``share`` of the samples), by a hash of the tokens: neither order nor seed matters, and the same
    conversation is always on the same side."""
    limit = int(share * 2**64)
    digests = (hashlib.blake2b(samples[n][0].tobytes(), digest_size=8).digest() for n in range(len(samples)))
    mine = np.array([int.from_bytes(digest) < limit for digest in digests], bool)
    return samples.part(np.flatnonzero(~mine)), samples.part(np.flatnonzero(mine))
