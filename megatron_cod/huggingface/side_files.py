"""Chat templates and ends of texts in the files of an export: the same in every file, and as trained.

Programs read different files. transformers and vLLM take the template from ``chat_template.jinja`` first, llama.cpp's
converter from ``tokenizer_config.json`` first; generation ends at the ids of ``generation_config.json`` in transformers and
vLLM, at the tokenizer's ``eos_token`` in llama.cpp and lm-eval, and at ``config.json``'s where nothing else has one.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from megatron_cod.data.chat.chat_format import ChatFormat
from megatron_cod.data.chat.encoders import ByteEncoder, HuggingFaceEncoder
from megatron_cod.data.tokenizers.choice import BYTE_VOCABULARY
from megatron_cod.errors import UserError, bad_input

CHAT_TEMPLATE = "chat_template.jinja"
GENERATION = "generation_config.json"
_TOKENIZER_CONFIG, _SPECIAL_TOKENS = "tokenizer_config.json", "special_tokens_map.json"
_OTHER_TEMPLATES = ("chat_template.json",)
"""Older places of a template, which is not this one."""
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def agree(args: Namespace, folder: Path, config: dict[str, Any]) -> list[str]:
    """Write into the files in ``folder``, and ``config``, the template of fine-tuning, if there was one, and
    the tokens that end an answer. Returns lines for the user."""
    template = getattr(args, "chat_template", None)
    if not template:
        return []
    (folder / CHAT_TEMPLATE).write_text(template, encoding="utf-8")
    for name in _OTHER_TEMPLATES:
        (folder / name).unlink(missing_ok=True)
    chat = _chat_format(args, folder, template)
    if chat is None:
        return ["without a tokenizer the files do not say at which token an answer ends; --like DIR brings one"]
    answer, ends = chat.answer_end(), sorted(chat.ends())
    last = ends if answer is None else [chat.encoder.specials[answer], *ends]
    _edit(folder / _TOKENIZER_CONFIG, lambda config: config | {"chat_template": template})
    if answer is not None and not chat.template.reads("eos_token"):
        # Nothing else reads the tokenizer's own end, and a program that knows that one alone is to stop there.
        for name in (_TOKENIZER_CONFIG, _SPECIAL_TOKENS):
            _edit(folder / name, lambda config: config | {"eos_token": _renamed(config.get("eos_token"), answer)})
    if last:
        config["eos_token_id"] = last[0]
        _edit(
            folder / GENERATION, lambda config: config | {"eos_token_id": _once([*last, *_listed(config)])}, create=True
        )
    if answer is not None:
        return []
    return [
        "the chat template ends an answer with no special token of the tokenizer: programs will not stop there by "
        "themselves"
    ]


def _chat_format(args: Namespace, folder: Path, template: str) -> ChatFormat | None:
    """None where the folder has no tokenizer, and the model was not trained on bytes."""
    if _has_tokenizer(folder):
        return ChatFormat(HuggingFaceEncoder(_tokenizer(folder)), template)
    return ChatFormat(ByteEncoder(), template) if _reads_bytes(args) else None


def _reads_bytes(args: Namespace) -> bool:
    return getattr(args, "tokenizer_type", None) == "NullTokenizer" and args.vocab_size == BYTE_VOCABULARY


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json"))


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def name_ids(args: Namespace, folder: Path, config: dict[str, Any]) -> None:
    """Put the ids of special tokens that the tokenizer in ``folder`` has into ``config``, and take those of another one out
    of it and of the generation file. Without any, a loader would take its architecture's defaults, of another tokenizer."""
    found: dict[str, int | None] = {"eos_token_id": BYTE_VOCABULARY - 1} if _reads_bytes(args) else {}
    if _has_tokenizer(folder):
        try:
            tokenizer = _tokenizer(folder)
        except Exception:  # files that transformers cannot read are copied as they are
            return
        found = {name: getattr(tokenizer, name) for name in _IDS}
    for name in [name for name in config if name.endswith("_token_id")]:
        del config[name]
    config |= {name: found.get(name) for name in _IDS}
    _edit(
        folder / GENERATION,
        lambda config: {key: config[key] for key in config if not key.endswith("_token_id")} | _given(found),
    )


def _given(found: dict[str, int | None]) -> dict[str, int]:
    return {name: number for name, number in found.items() if number is not None}


def _edit(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]], create: bool = False) -> None:
    """Change a JSON file that is there, or that is to be made. UserError for one that holds no object."""
    if not path.is_file() and not create:
        return
    with bad_input(path):
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not isinstance(config, dict):
        raise UserError(f"{path} holds a {type(config).__name__}, not an object")
    path.write_text(json.dumps(change(config), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _renamed(token: Any, text: str) -> Any:
    """A special token as these files write it: its text, or an object that describes it."""
    return {**token, "content": text} if isinstance(token, dict) else text


def _listed(config: dict[str, Any]) -> list[int]:
    found = config.get("eos_token_id")
    return found if isinstance(found, list) else [] if found is None else [found]


def _once(numbers: Iterable[int]) -> list[int]:
    return list(dict.fromkeys(numbers))
