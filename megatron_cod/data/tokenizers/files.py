"""The files that a tokenizer is read from, as hashes: by them the same tokenizer is known elsewhere, and later."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

SINGLE = "model"  # the name of a model that is one file: it may be called otherwise elsewhere
WHOLE = "tokenizer.json"
_BESIDE = ("added_tokens.json", "special_tokens_map.json", "tekken.json")
_CONFIG = "tokenizer_config.json"
# Read by tokenizers without a tokenizer.json.
_VOCABULARIES = ("vocab*", "merges*", "*.model", "*.spm", "*.tiktoken", "*.codes")
# Keys of the configuration that no id depends on, so that a chat template does not make another tokenizer.
_NOT_OF_IDS = {
    *("chat_template", "model_max_length", "name_or_path", "tokenizer_file", "special_tokens_map_file", "is_local"),
    *("padding_side", "truncation_side", "model_input_names", "clean_up_tokenization_spaces", "processor_class"),
}


def tokenizer_files(model: Path | None) -> dict[str, str]:
    """SHA-256 by name: of a single file, or of the files of a Hugging Face folder that its ids depend on. Empty without
    such files."""
    if model is None or not model.exists():
        return {}
    if model.is_file():
        return {SINGLE: _digest(model.read_bytes())}
    found = [path for name in (WHOLE, *_BESIDE) if (path := model / name).is_file()]
    if not (model / WHOLE).is_file():
        found += [path for pattern in _VOCABULARIES for path in model.glob(pattern) if path.is_file()]
    digests = {path.name: _digest(path.read_bytes()) for path in found}
    if (model / _CONFIG).is_file():
        digests[_CONFIG] = _digest(_of_ids((model / _CONFIG).read_bytes()))
    return dict(sorted(digests.items()))


def main_file(files: Mapping[str, str]) -> str | None:
    """The hash of the model's own file, where it is one."""
    return files.get(SINGLE) or files.get(WHOLE)


def differing(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The names of files that changed, came or went."""
    return sorted(name for name in {*before, *now} if before.get(name) != now.get(name))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _of_ids(config: bytes) -> bytes:
    try:
        values = json.loads(config)
    except ValueError:  # no tokenizer can be made of it: building one reports that
        return config
    if not isinstance(values, dict):
        return config
    return json.dumps({key: value for key, value in values.items() if key not in _NOT_OF_IDS}, sort_keys=True).encode()
