"""``--sample-data``: a run that names no data trains on the speeches that come with the package, as bytes.

Every rank sets the same path; the files are made by the check of the data, on one rank of each machine.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from megatron_cod import __version__
from megatron_cod.args import MegatronArgs
from megatron_cod.console import log_rank0
from megatron_cod.data.datasets.blends import blends_of
from megatron_cod.data.sample_corpus import prepare_sample
from megatron_cod.data.tokenizers.choice import BYTE_VOCABULARY
from megatron_cod.errors import UserError

_NAME = "sotu"


def folder() -> Path:
    """Where the token files are: a folder of this version in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "megatron_cod" / f"sample_{__version__}"


def use_sample(raw: MegatronArgs) -> None:
    """Set the paths of the sample where ``--sample-data`` asks for it, no data is named and the model reads bytes.

    raw: the plain parse.
    """
    reads_bytes = raw.tokenizer_type == "NullTokenizer" and raw.vocab_size == BYTE_VOCABULARY
    if not raw.sample_data or raw.mock_data or blends_of(raw) or not reads_bytes:
        return
    prefix = folder() / _NAME
    raw.train_data_path = [f"{prefix}_train_text_document"]
    raw.valid_data_path = [f"{prefix}_valid_text_document"]
    log_rank0(
        "no data given: training on State of the Union speeches that come with the package, as bytes "
        f"({prefix}_train_text_document); --train-data-path PREFIX and --valid-data-path PREFIX give your own"
    )


def make_sample(args: MegatronArgs) -> None:
    """Make the files where the arguments name them and they are not there. UserError where they cannot be written."""
    target = folder()
    if (args.train_data_path or [""])[0] != f"{target / _NAME}_train_text_document" or target.is_dir():
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as beside:
            prepare_sample(Path(beside, "made"))
            with suppress(OSError):  # another run was first
                os.rename(Path(beside, "made"), target)
    except OSError as error:
        raise UserError(
            f"{error.filename or target}: {error.strerror}: the sample text is not written; set XDG_CACHE_HOME, or give "
            "--train-data-path"
        ) from None
