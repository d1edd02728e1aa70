"""A tokenizer named on the Hugging Face hub: whether it is available here, before a library retries for minutes."""

from __future__ import annotations

import os
import socket
from functools import cache
from pathlib import Path
from urllib.parse import urlparse

from megatron_cod.args import MegatronArgs
from megatron_cod.data.tokenizers.native_files import to_convert, why_not_as_it_is
from megatron_cod.errors import UserError

_TYPES = ("HuggingFaceTokenizer", "SFTTokenizer")
_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
_CONNECT_SECONDS = 5.0
_PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


@cache
def _unreachable(endpoint: str) -> str | None:
    """Why the hub does not answer; None where it does, or where a proxy is in between."""
    if any(os.environ.get(name) for name in _PROXIES):
        return None
    url = urlparse(endpoint)
    try:
        with socket.create_connection((url.hostname or "", url.port or 443), timeout=_CONNECT_SECONDS):
            return None
    except OSError as error:
        return error.strerror or str(error)


def _is_cached(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return any(isinstance(try_to_load_from_cache(name, file), str) for file in _FILES)


def problem(args: MegatronArgs) -> str | None:
    """One line for a tokenizer that is neither a folder, nor cached, nor to be fetched, or a folder to convert; else
    None."""
    name = args.tokenizer_model
    if args.tokenizer_type not in _TYPES or not name:
        return None
    if Path(name).exists():
        why = why_not_as_it_is(Path(name))
        return why and f"--tokenizer-model {name} {why}: {to_convert(Path(name))}"
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        return f"--tokenizer-model {name} does not exist"
    from huggingface_hub import constants

    if _is_cached(name):
        return None
    if constants.HF_HUB_OFFLINE:
        return f"--tokenizer-model {name} is no folder here and is not in the hub's cache, and HF_HUB_OFFLINE is set"
    why = _unreachable(constants.ENDPOINT)
    if why is None:
        return None
    return (
        f"--tokenizer-model {name} is no folder here and is not in the hub's cache, and {constants.ENDPOINT} does not "
        f"answer ({why}): give a folder, or fetch it where there is a network"
    )


def check_hub_tokenizer(args: MegatronArgs) -> None:
    """UserError for a tokenizer that is not available. args: the plain parse."""
    found = problem(args)
    if found:
        raise UserError(found)
