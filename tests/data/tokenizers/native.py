"""Small tokenizers in the files of other libraries, all of one byte-level BPE, and their ids by the definition."""

import base64
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import regex
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

PATTERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPECIAL = ["<unk>", "<s>", "</s>", "[INST]", "<pad>"]
UNUSED = 3


def byte_of() -> dict[str, int]:
    """The character that stands for each byte in vocab.json -> the byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}


def trained(texts: Sequence[str]) -> tuple[dict[str, int], list[list[str]]]:
    """vocab and merges, <|endoftext|> first, as GPT-2's splits texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], model["merges"]


def ranks_of(merges: Sequence[Sequence[str]]) -> dict[bytes, int]:
    """The same pieces as tiktoken has them: the bytes, then what each merge makes."""
    ranks, byte = {bytes([number]): number for number in range(256)}, byte_of()
    for merge in merges:
        ranks.setdefault(bytes(byte[one] for one in "".join(merge)), len(ranks))
    return ranks


def write_tekken(folder: Path, ranks: dict[bytes, int], special: Sequence[str] = SPECIAL) -> Path:
    """As Mistral's: more ranks in the file than are used, and unused special tokens."""
    vocab = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
        for token, rank in [*ranks.items(), (b"not used", len(ranks))]
    ]
    number = len(special) + UNUSED
    config = {"pattern": PATTERN, "num_vocab_tokens": len(vocab), "default_vocab_size": len(ranks) + number}
    config |= {"default_num_special_tokens": number, "version": "v7"}
    names = [{"rank": rank, "token_str": token, "is_control": True} for rank, token in enumerate(special)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tekken.json").write_text(json.dumps({"config": config, "vocab": vocab, "special_tokens": names}))
    return folder


def write_tiktoken(path: Path, ranks: dict[bytes, int]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()))
    return path


def write_gpt2(folder: Path, vocab: dict[str, int], merges: Sequence[Sequence[str]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(" ".join(pair) + "\n" for pair in merges))
    return folder


def by_ranks(ranks: dict[bytes, int], text: str, pattern: str = PATTERN) -> list[int]:
    """By the definition: in each piece the pair that makes the lowest rank is merged, until none is left."""
    ids = []
    for piece in regex.findall(pattern, text):
        parts = [bytes([byte]) for byte in piece.encode()]
        while len(parts) > 1:
            pairs = [ranks.get(one + two, len(ranks)) for one, two in pairwise(parts)]
            lowest = min(pairs)
            if lowest == len(ranks):
                break
            at = pairs.index(lowest)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        ids += [ranks[part] for part in parts]
    return ids
