"""Tokenizer files of other libraries -> a folder with ``tokenizer.json``, which Megatron, transformers and vLLM read alike.

What transformers makes of these files depends on which packages are installed, and partly is no tokenizer that Megatron
takes: ``tekken.json`` gives another class with mistral-common than without. A converted folder is the same everywhere.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_cod.common.files import making_directory
from megatron_cod.data.tokenizers.native_reference import compare_tekken, compare_tiktoken
from megatron_cod.data.tokenizers.tiktoken_encodings import ENCODINGS, Encoding
from megatron_cod.errors import UserError, bad_input

TEKKEN, TIKTOKEN, MERGES = "tekken.json", ".tiktoken", "merges.txt"
COMMAND = "megatron-cod convert tokenizer"
_WHOLE = "tokenizer.json"
_RANK = re.compile(rb"[A-Za-z0-9+/]+=* \d+\s*")
_MOST_UNUSED = 1000
"""Ids between the ranks and the first special token; more are of another file's encoding."""
_COPIED = ("chat_template.jinja", "chat_template.json", "generation_config.json")
_ENDS = ("</s>", "<|endoftext|>", "<|end_of_text|>")


@dataclass(frozen=True)
class NativeOptions:
    """What a file does not say. Of a tiktoken file: how it splits texts, and its special tokens."""

    encoding: str | None = None
    """Of ``ENCODINGS``; None: by the name of the file."""
    pattern: str | None = None
    special: Mapping[str, int] | None = None
    eos: str | None = None
    """None: the usual one, if it is among the special tokens."""


def native_file(model: Path) -> Path | None:
    """The file of another library that ``model``, a file or a folder without a ``tokenizer.json``, is or holds."""
    if model.is_file():
        is_one = model.name == TEKKEN or model.suffix == TIKTOKEN or _is_tiktoken(model)
        return model if is_one or model.name == "vocab.json" else None
    if (model / _WHOLE).is_file():
        return None
    found = [model / TEKKEN, *sorted(model.glob(f"*{TIKTOKEN}")), *sorted(model.glob("*.model"))]
    for path in found:
        if path.is_file() and (path.suffix != ".model" or _is_tiktoken(path)):
            return path
    return model / "vocab.json" if (model / "vocab.json").is_file() and (model / MERGES).is_file() else None


def _is_tiktoken(path: Path) -> bool:
    """By its first line: the same names are used for SentencePiece's models."""
    with path.open("rb") as file:
        return _RANK.fullmatch(file.readline(1 << 12)) is not None


def why_not_as_it_is(model: Path) -> str | None:
    """Why a folder is to be converted before Megatron takes it, as the rest of a sentence that begins with its name."""
    model = model.parent if model.is_file() else model
    if not model.is_dir():
        return None
    if (model / TEKKEN).is_file() and (not (model / _WHOLE).is_file() or _has_mistral_common()):
        return f"holds {TEKKEN}, which transformers reads to other tokenizers with mistral-common than without"
    path = native_file(model)
    if path is not None and path.suffix == TIKTOKEN:
        return f"holds {path.name}, which transformers does not read"
    if path is not None and path.name == "vocab.json" and not _has_class(model):
        return f"holds vocab.json and {MERGES}, but no file that names the class of the tokenizer"
    return None  # a tiktoken file that transformers knows by its name


def check_as_it_is(model: Path) -> None:
    """UserError, with the command, for a folder that is to be converted first."""
    why = why_not_as_it_is(model)
    if why is not None:
        raise UserError(f"tokenizer model {model} {why}: {to_convert(model)}")


def to_convert(model: Path) -> str:
    """What to do, as the end of a sentence."""
    return f"convert it with {COMMAND} --model {model} --output FOLDER"


def _has_mistral_common() -> bool:
    return importlib.util.find_spec("mistral_common") is not None


def _has_class(folder: Path) -> bool:
    for name, key in (("tokenizer_config.json", "tokenizer_class"), ("config.json", "model_type")):
        if key in _object(folder / name):
            return True
    return False


def _object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    with bad_input(path):
        found = json.loads(path.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {}


def convert(model: Path, output: Path, options: NativeOptions, log: Callable[[str], None]) -> int:
    """Write ``output`` from what ``model`` is or holds; returns the number of tokens.

    The ids of some texts are compared with those of the library that the file is for, where that is installed. Raises
    UserError for what is no such file, what lacks an option, and ids that differ; then nothing is written.
    """
    if output.exists():
        raise UserError(f"{output} exists already; give another --output, or remove it")
    path = native_file(model) or _tekken_beside(model)
    if path is None:
        raise UserError(
            f"{model} holds no {TEKKEN}, no tiktoken file, and no vocab.json with {MERGES}"
            + (f"; its {_WHOLE} needs no conversion" if (model / _WHOLE).is_file() else "")
        )
    read = _tekken if path.name == TEKKEN else _vocabulary if path.name == "vocab.json" else _tiktoken
    with bad_input(path):
        tokenizer, line = read(path, options)
    log(line)
    with making_directory(output) as part:
        tokenizer.save_pretrained(part)
        for name in _COPIED:
            if (path.parent / name).is_file():
                shutil.copyfile(path.parent / name, part / name)
    return len(tokenizer)


def _tekken_beside(model: Path) -> Path | None:
    """Beside a ``tokenizer.json``, with mistral-common installed, it is what transformers reads."""
    return model / TEKKEN if (model / TEKKEN).is_file() else None


def _tekken(path: Path, options: NativeOptions) -> tuple[Any, str]:
    from tokenizers import processors
    from transformers.integrations.mistral.tokenizer import MistralConverter

    try:
        tokenizer = MistralConverter(str(path)).converted()
    except ImportError:
        raise UserError(
            f"{path} is of a version without special tokens, which mistral-common has: pip install mistral-common"
        ) from None
    bos = tokenizer.token_to_id("<s>")
    if bos is None:
        raise UserError(f"{path} has no special token <s>, which begins Mistral's texts")
    begin = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", bos)])
    tokenizer.post_processor = processors.Sequence([tokenizer.post_processor, begin])
    names = {"bos_token": "<s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    whole = _whole(tokenizer, names, options.eos, path)
    return whole, compare_tekken(path, whole)


def _tiktoken(path: Path, options: NativeOptions) -> tuple[Any, str]:
    from transformers.convert_slow_tokenizer import TikTokenConverter

    encoding = _encoding(path, options)
    try:
        ranks = TikTokenConverter.load_tiktoken_bpe(str(path))
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    if set(ranks.values()) != set(range(len(ranks))):
        raise UserError(f"{path}: its {len(ranks)} ranks are not those from 0 to {len(ranks) - 1}")
    special = _without_gaps(path, len(ranks), encoding.special)
    tokenizer = TikTokenConverter(str(path), encoding.pattern, extra_special_tokens=special).converted()
    whole = _whole(tokenizer, {}, options.eos, path)
    return whole, compare_tiktoken(path, ranks, encoding, whole)


def _encoding(path: Path, options: NativeOptions) -> Encoding:
    name = options.encoding or path.stem
    known = ENCODINGS.get(name)
    if known is None and (options.encoding or not options.pattern):
        raise UserError(
            f"{path} has ranks alone: give --encoding ({', '.join(ENCODINGS)}), or --pattern REGEX and --special TOKEN=ID "
            "..., as the model's own code has them"
        )
    pattern = options.pattern or (known.pattern if known else "")
    special = known.special if known and options.special is None else options.special or {}
    return Encoding(pattern, special)


def _without_gaps(path: Path, ranks: int, special: Mapping[str, int]) -> list[str]:
    """Special tokens in the order of their ids, which follow the ranks; where ids are unused, names of our own."""
    named = {number: token for token, number in special.items()}
    first = min(named, default=ranks)
    if len(named) < len(special) or not ranks <= first <= ranks + _MOST_UNUSED:
        raise UserError(
            f"{path} has ids below {ranks}, and its special tokens are to begin at {first}: give those of this file with "
            "--special TOKEN=ID ..., each with an id of its own"
        )
    return [named.get(number, f"<|reserved_token_{number}|>") for number in range(ranks, max(named, default=-1) + 1)]


def _vocabulary(path: Path, options: NativeOptions) -> tuple[Any, str]:
    from transformers import GPT2Tokenizer

    tokenizer = GPT2Tokenizer.from_pretrained(path.parent)
    if options.eos is not None:
        tokenizer.add_special_tokens({"eos_token": options.eos})
    return tokenizer, f"{path.parent} is read as GPT-2's; another class is named in its tokenizer_config.json"


def _whole(tokenizer: Any, names: Mapping[str, str], eos: str | None, path: Path) -> Any:
    """transformers' tokenizer, with those of the usual special tokens that are in its vocabulary."""
    from transformers import PreTrainedTokenizerFast

    if eos is not None and tokenizer.token_to_id(eos) is None:
        raise UserError(f"--eos-token {eos} is no token of {path}")
    has = {added.content for added in tokenizer.get_added_tokens_decoder().values()}
    end = eos or next((token for token in _ENDS if token in has), None)
    if end is None:
        raise UserError(f"{path} names no token that ends a text: give --eos-token")
    given = {key: token for key, token in names.items() if token in has}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, **given)
