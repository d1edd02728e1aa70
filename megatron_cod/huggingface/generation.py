"""Text from a model: greedy or sampled."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import torch

from megatron_cod.data.chat.chat_format import ChatFormat
from megatron_cod.data.chat.encoders import ByteEncoder, HuggingFaceEncoder
from megatron_cod.data.chat.messages import Message
from megatron_cod.errors import UserError, bad_input
from megatron_cod.huggingface import companions
from megatron_cod.huggingface.checkpoint import MegatronCheckpoint, find_checkpoint
from megatron_cod.huggingface.export import DTYPES
from megatron_cod.huggingface.folding import folding_of_checkpoint
from megatron_cod.huggingface.megatron_args import architecture_of_args
from megatron_cod.huggingface.memory import load_as_transformers
from megatron_cod.huggingface.side_files import CHAT_TEMPLATE
from megatron_cod.huggingface.verification import check_whole
from megatron_cod.huggingface.weights_reader import read_json


@dataclass(frozen=True)
class Sampling:
    """How to draw tokens. UserError for values that leave nothing to draw from."""

    temperature: float = 1.0
    top_k: int = 0
    """0 is all."""
    top_p: float = 1.0
    seed: int = 1234

    def __post_init__(self) -> None:
        if self.temperature <= 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise UserError("--temperature must be more than 0, --top-k at least 0, --top-p from above 0 to 1")


class Tokenizer(Protocol):
    """What generation needs of one."""

    def encode(self, text: str) -> list[int]:
        """Ids of a prompt."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids."""

    @property
    def eos_token_id(self) -> int | None:
        """The id that ends a text."""


class ByteTokenizer:
    """Bytes as ids, 256 ends a text: what ``megatron-cod preprocess --tokenizer-type ByteLevelTokenizer`` writes."""

    eos_token_id = 256

    def __init__(self, chat_template: str | None = None) -> None:
        self.chat_template = chat_template

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(one for one in ids if one < 256).decode(errors="replace")


def _tokenizer_in(folder: Path) -> Any | None:
    files = [name for name in companions.TOKENIZER_FILES if not name.startswith("chat_template")]
    if not any((folder / name).is_file() for name in files):
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # transformers may raise anything for unreadable files
        raise UserError(f"the tokenizer in {folder} cannot be read: {error}") from None


def _tokenizer(folders: Sequence[Path], vocab: int, given: Path | None = None) -> Any:
    if given is not None:
        folders, vocab = [given], 0  # what the user names is taken, or refused
    for folder in folders:
        found = _tokenizer_in(folder)
        if found is not None:
            return found
    if vocab in (256, 257):
        template = folders[0] / CHAT_TEMPLATE
        return ByteTokenizer(template.read_text(encoding="utf-8") if template.is_file() else None)
    raise UserError(f"no tokenizer files in {folders[0]}; give --tokenizer DIR")


def open_directory(
    folder: Path, tokenizer: Path | None = None, dtype: str = "float32", *, with_tokenizer: bool = True
) -> tuple[Any, Any]:
    """(model in eval mode, tokenizer) of a Hugging Face directory. UserError when there is none.

    with_tokenizer: whether one is needed; else it is None.
    """
    from transformers import AutoModelForCausalLM

    config = read_json(folder / "config.json")
    with bad_input(folder / "config.json"):
        vocab = int(config.get("vocab_size") or 0)
    found = _tokenizer([folder], vocab, tokenizer) if with_tokenizer else None
    recorded = config.get(companions.KEY)
    if isinstance(recorded, dict) and not recorded.get("folded", True):
        raise UserError(f"{folder} was exported with --no-fold: transformers would compute something else")
    try:
        model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype], output_loading_info=True)
    except Exception as error:  # as for tokenizers
        raise UserError(f"{folder} cannot be loaded: {error}") from None
    check_whole(report, folder, model.config, left_over=False)
    return model.eval(), found


def open_checkpoint(
    folder: Path,
    step: int | None = None,
    tokenizer: Path | None = None,
    dtype: str = "float32",
    *,
    with_tokenizer: bool = True,
) -> tuple[Any, Any]:
    """The same of a Megatron checkpoint, in memory."""
    path = find_checkpoint(folder, step)
    model = load_as_transformers(path, dtype=DTYPES[dtype])
    if not with_tokenizer:
        return model, None
    return model, checkpoint_tokenizer(path, None, tokenizer, model.config.vocab_size)


def foldable(folder: Path, step: int | None = None) -> bool:
    """Whether a stock architecture computes what a Megatron checkpoint does."""
    held = MegatronCheckpoint(find_checkpoint(folder, step))
    try:
        scheme = folding_of_checkpoint(held.args, held.iteration)
        architecture_of_args(held.args, branch_norms=scheme.branch_norms)
    except ValueError:
        return False
    return True


def checkpoint_tokenizer(folder: Path, step: int | None, given: Path | None, vocab: int) -> Any:
    """The tokenizer of a Megatron checkpoint, or of the directory ``given``. UserError when there is none."""
    path = find_checkpoint(folder, step)
    args = MegatronCheckpoint(path).args
    with TemporaryDirectory() as own:  # those of the run, as an export would have them
        companions.copy_tokenizer_of(args, Path(own))
        found = _tokenizer([path.parent / companions.FOLDER, Path(own)], vocab, given)
    if given is None and getattr(args, "chat_template", None):
        found.chat_template = args.chat_template
    return found


def open_model(
    folder: Path,
    step: int | None = None,
    tokenizer: Path | None = None,
    dtype: str = "float32",
    *,
    with_tokenizer: bool = True,
) -> tuple[Any, Any]:
    """The same of either; of a checkpoint the depth factors are folded, block by block. UserError for another folder."""
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist")
    if (folder / "config.json").is_file():
        return open_directory(folder, tokenizer, dtype, with_tokenizer=with_tokenizer)
    return open_checkpoint(folder, step, tokenizer, dtype, with_tokenizer=with_tokenizer)


def next_token(logits: torch.Tensor, sampling: Sampling | None, generator: torch.Generator) -> int:
    """The next id, from logits [v]: the likeliest, or a drawn one."""
    if sampling is None:
        return int(logits.argmax())
    scaled = logits.float() / sampling.temperature
    if sampling.top_k:
        smallest = scaled.topk(min(sampling.top_k, scaled.numel())).values[-1]
        scaled = scaled.masked_fill(scaled < smallest, float("-inf"))
    shares, order = scaled.softmax(-1).sort(descending=True)
    # A token stays while those before it do not make up top_p: so the first always does.
    shares = shares.masked_fill(shares.cumsum(-1) - shares >= sampling.top_p, 0.0)
    return int(order[torch.multinomial(shares.cpu(), 1, generator=generator)])


@torch.no_grad()
def next_tokens(
    model: Any, ids: Sequence[int], count: int, sampling: Sampling | None, ends: Collection[int | None]
) -> Iterator[int]:
    """Up to ``count`` ids behind ``ids``, each when it is known; one of ``ends``, which is omitted, or the model's longest
    sequence ends it.

    Raises UserError for a prompt of no tokens, or too many.
    """
    longest = model.config.max_position_embeddings
    if not 0 < len(ids) < longest:
        raise UserError(f"the prompt is {len(ids)} tokens; it must be from 1 to {longest - 1}")
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(sampling.seed if sampling else 0)
    # The scores of a long prompt, positions x vocabulary, may be larger than the model; the last position's are read.
    accepted = signature(model.forward).parameters
    scores = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
    name = "cache" if "cache" in accepted else "past_key_values"  # the older name, removed in transformers 5.40
    step, cache = torch.tensor([list(ids)], device=device), None
    for _ in range(min(count, longest - len(ids))):
        out = model(step, use_cache=True, **{name: cache}, **scores)
        token, cache = next_token(out.logits[0, -1], sampling, generator), getattr(out, name)
        if token in ends:
            break
        yield token
        step = torch.tensor([[token]], device=device)


def __getattr__(name: str) -> Any:
    if name == "go_on":  # of version 0.1.0, which returned a list
        return lambda *given: list(next_tokens(*given))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def generate(model: Any, tokenizer: Tokenizer, prompt: str, count: int, sampling: Sampling | None = None) -> str:
    """The prompt and up to ``count`` tokens behind it; see ``next_tokens``."""
    ids = list(tokenizer.encode(prompt))
    return tokenizer.decode([*ids, *next_tokens(model, ids, count, sampling, {tokenizer.eos_token_id})])


class Chat:
    """A conversation with a model, under its tokenizer's chat template. UserError where that has none."""

    def __init__(self, model: Any, tokenizer: Any, count: int, sampling: Sampling | None = None) -> None:
        """count: tokens of an answer at most."""
        template = getattr(tokenizer, "chat_template", None)
        if not template:
            raise UserError(
                "the tokenizer has no chat template, which a fine-tuned checkpoint brings along; omit --chat"
            )
        self._model, self._tokenizer, self._count, self._sampling = model, tokenizer, count, sampling
        encoder = ByteEncoder() if isinstance(tokenizer, ByteTokenizer) else HuggingFaceEncoder(tokenizer)
        self._format = ChatFormat(encoder, template)
        self.messages: list[Message] = []

    def answer(self, question: str) -> Generator[str, None, None]:
        """Parts of the answer to a user's message, each when it is known. Both are then part of the conversation.

        An answer that is not taken to its end is kept as far as it was. UserError if the conversation is too long; the
        question is then no part of it.
        """
        ids = self._format.prompt([*self.messages, {"role": "user", "content": question}])
        found: list[int] = []
        shown = ""
        try:
            for token in next_tokens(self._model, ids, self._count, self._sampling, self._format.ends()):
                found.append(token)
                text = str(self._tokenizer.decode(found))
                if not text.endswith(_PART_OF_A_CHARACTER):
                    yield text[len(shown) :]
                    shown = text
            text = str(self._tokenizer.decode(found))
            if text != shown:
                yield text[len(shown) :]
        finally:
            if found:
                answered = {"role": "assistant", "content": str(self._tokenizer.decode(found))}
                self.messages += [{"role": "user", "content": question}, answered]


_PART_OF_A_CHARACTER = "\ufffd"
"""What tokenizers decode bytes to that the next token may complete."""


def answer(model: Any, tokenizer: Any, question: str, count: int, sampling: Sampling | None = None) -> str:
    """What the model answers a user, under its tokenizer's chat template. UserError where that has none."""
    return "".join(Chat(model, tokenizer, count, sampling).answer(question))
