"""What a fine-tuning run trains on: the conversations that its flags name, as samples, and their plan of rows."""

import hashlib
from collections.abc import Callable
from functools import partial

from megatron_cod.common.lists import listed
from megatron_cod.data.chat.cache import cached_samples
from megatron_cod.data.chat.chat_format import chat_format_of
from megatron_cod.data.chat.packing import Epochs
from megatron_cod.data.chat.samples import Counts, Reading, Samples, held_out
from megatron_cod.errors import UserError
from megatron_cod.training.fine_tuning.flags import FineTuningArgs

_MOST_KEYS = 8
_SHOWN = 400
"""Characters of the first conversation that the log shows."""


class Conversations:
    """The data of one run, read once: samples, and the plan of rows for training and validation."""

    def __init__(self, raw: FineTuningArgs, log: Callable[[str], None]) -> None:
        """raw: the plain parse of the command line. UserError for data that cannot be trained on."""
        self.chat = chat_format_of(raw.tokenizer_type, raw.tokenizer_model, raw.vocab_size, raw.chat_template)
        reading = Reading(raw.seq_length, raw.sft_too_long, raw.sft_layout, raw.sft_skip_bad_lines)
        read = partial(cached_samples, raw.data_cache_path, chat=self.chat, reading=reading, log=log)
        self.train, counts = read(raw.sft_data_path)
        log(_described("training data", self.train, counts))
        first = counts.first if len(counts.first) <= _SHOWN else f"{counts.first[:_SHOWN]} ..."
        log(f"the first conversation, what is trained in [[ ]]: {first!r}")
        valid: Samples | None = None
        if raw.sft_valid_data_path:
            valid, counts = read(raw.sft_valid_data_path)
            log(_described("validation data", valid, counts))
        elif raw.sft_valid_share:
            self.train, valid = held_out(self.train, raw.sft_valid_share)
            if not len(valid) or not len(self.train):
                raise UserError(
                    f"--sft-valid-share {raw.sft_valid_share}: {len(valid)} of {len(self.train) + len(valid)} "
                    "conversations fall to validation; name its files with --sft-valid-data-path"
                )
            log(f"held out to validate on: {len(valid):,} conversations")
        self.valid = valid
        self._order = (raw.seed, raw.seq_length, raw.sft_packing)
        plan = partial(Epochs, size=raw.seq_length, pack=raw.sft_packing)
        self.plan = plan(self.train.positions(), seed=raw.seed, epochs=raw.train_epochs)
        self.valid_plan = plan(valid.positions(), seed=None) if valid is not None else None
        self.share = float(self.train.positions().sum()) / (self.plan.rows_an_epoch * raw.seq_length)

    def fingerprint(self) -> str:
        """Of the tokens in training, their masks and their order: what a resumed run must find unchanged."""
        digest = hashlib.blake2b(repr(self._order).encode(), digest_size=16)
        for part in (self.train.ids, self.train.trained, self.train.starts):
            digest.update(part.tobytes())
        return digest.hexdigest()

    @property
    def padding(self) -> int:
        """The id that rows are filled up with; it is never a label that counts."""
        return self.chat.encoder.specials.get(self.chat.encoder.variables.get("eos_token", ""), 0)


def _described(what: str, samples: Samples, counts: Counts) -> str:
    tokens = int(samples.positions().sum())
    line = (
        f"{what}: {len(samples):,} conversations, {tokens:,} tokens, of which {samples.answer_tokens():,} are trained"
    )
    left_out = {
        "truncated": counts.truncated,
        "dropped as too long": counts.dropped,
        "bad lines skipped": counts.bad,
    }
    line = "; ".join([line, *(f"{number:,} {name}" for name, number in left_out.items() if number)])
    return "\n".join([line, *_unread(counts), *(f"  skipped: {error}" for error in counts.shown)])


def _unread(counts: Counts) -> list[str]:
    if not counts.unread:
        return []
    named = sorted(counts.unread.items(), key=lambda one: (-one[1], one[0]))
    shown = listed((f"{key} in {number:,}" for key, number in named), _MOST_KEYS)
    return [f"  WARNING: keys that are not read, in {counts.kept:,} conversations: {shown}"]
