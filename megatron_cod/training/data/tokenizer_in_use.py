"""The tokenizer of the training arguments, to compare with those of datasets."""

from __future__ import annotations

from pathlib import Path

from megatron_cod.args import MegatronArgs
from megatron_cod.data.datasets.tokenizer_match import NUMBERS, TrainedWith
from megatron_cod.data.tokenizers.choice import TOKENIZER_TYPES, TokenizerChoice
from megatron_cod.data.tokenizers.files import tokenizer_files


def trained_with(args: MegatronArgs) -> TrainedWith | None:
    """The tokenizer that the arguments give; None where they give none.

    A model from the hub, which is no local file, is known by its name only. UserError for one that cannot be read.
    """
    kind, model = args.tokenizer_type, args.tokenizer_model
    if kind is None:
        return None
    if kind == NUMBERS:
        eod, size = args.null_tokenizer_eod_id, args.vocab_size
        return TrainedWith(kind, vocab_size=size, eod=size - 1 if eod is None and size else eod)
    if not model or not Path(model).exists():
        return TrainedWith(kind, model)
    if kind not in TOKENIZER_TYPES:
        return TrainedWith(kind, model, tokenizer_files(Path(model)))
    choice = TokenizerChoice(kind, Path(model), not args.tokenizer_hf_no_include_special_tokens)
    return TrainedWith(kind, model, choice.files(), eod=choice.build().eod)
