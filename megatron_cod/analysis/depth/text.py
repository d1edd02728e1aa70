"""Text for the diagnostics: sequences of one length to evaluate on, and others to fit on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from megatron_cod.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator


def documents(path: Path, key: str = "text") -> Iterator[str]:
    """The documents of a ``.jsonl`` file, or a text file as one. UserError, with the line, for what is unreadable."""
    try:
        if path.suffix == ".jsonl":
            with path.open(encoding="utf-8") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        yield _field(path, number, line, key)
        else:
            yield path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None


def _field(path: Path, number: int, line: str, key: str) -> str:
    try:
        found = json.loads(line)[key]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}:{number} has no {key!r}") from None
    if not isinstance(found, str):
        raise UserError(f"{path}:{number}: {key!r} is no text")
    return found


def holds_ids(path: Path) -> bool:
    """Whether it is the prefix of a ``.bin``/``.idx`` pair, which no tokenizer has to read."""
    return path.with_name(path.name + ".idx").is_file()


def ids_of(path: Path, tokenizer: Any, needed: int) -> list[int]:
    """At least ``needed`` token ids from the start of a file, if it has as many; a ``.bin``/``.idx`` prefix too."""
    if holds_ids(path):
        return _indexed(path, needed)
    ids: list[int] = []
    for text in documents(path):
        ids += tokenizer.encode(text)
        if len(ids) >= needed:
            break
    return ids


def _indexed(prefix: Path, needed: int) -> list[int]:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    dataset, ids = IndexedDataset(str(prefix)), []
    for document in range(len(dataset)):
        ids += dataset[document].tolist()
        if len(ids) >= needed:
            break
    return ids


def sequences(ids: list[int], length: int, batch: int, vocab: int | None) -> list[Tensor]:
    """Ids cut into rows of ``length``, in batches [<= batch, length]; the rest is left.

    UserError for ids beyond ``vocab``.
    """
    if ids and vocab is not None and max(ids) >= vocab:
        raise UserError(
            f"the tokenizer does not fit the model: it gives id {max(ids)}, the model has {vocab} embeddings"
        )
    rows = torch.tensor(ids[: len(ids) // length * length], dtype=torch.long).view(-1, length)
    return list(rows.split(batch))


def split_text(
    path: Path, tokenizer: Any, *, length: int, batch: int, evaluation: int, fit: int, vocab: int | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Batches to evaluate on, then batches to fit on, from one file: so many tokens of each, in whole sequences.

    Raises UserError when the text is too short.
    """
    if length < 2:
        raise UserError(f"--seq-length {length} is too short to predict a token")
    rows = {"evaluation": -(-evaluation // length), "fit": -(-fit // length)}
    needed = sum(rows.values()) * length
    ids = ids_of(path, tokenizer, needed)
    if len(ids) < needed:
        raise UserError(
            f"{path} gives {len(ids)} tokens, too few: --tokens {evaluation} and --fit-tokens {fit} need {needed}"
        )
    cut = rows["evaluation"] * length
    return sequences(ids[:cut], length, batch, vocab), sequences(ids[cut:needed], length, batch, vocab)
