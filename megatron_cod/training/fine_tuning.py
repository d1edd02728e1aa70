"""The task of ``sft.py``: conversations from JSON lines, packed into rows, loss per token of the answers."""

import argparse
import hashlib
from functools import partial
from typing import Any

import numpy as np

from megatron_cod.training import environment  # noqa: F401

# isort: split
from megatron.core import mpu
from megatron.core.datasets.utils import Split
from megatron.training import get_args

from megatron_cod.checkpoint_files import latest_checkpoint, newest_whole, same_directory
from megatron_cod.data.chat.chat_format import chat_format_of
from megatron_cod.data.chat.packing import Epochs, Repeated
from megatron_cod.data.chat.rows import Rows
from megatron_cod.data.chat.samples import Counts, Reading, Samples, held_out, read_samples
from megatron_cod.training.backend_flags import without
from megatron_cod.training.batches import forward_step
from megatron_cod.training.checkpoints import checkpoint_to_load, saved_state
from megatron_cod.training.fine_tuning_flags import INTRODUCTION, add_arguments, check_flags
from megatron_cod.training.run import say
from megatron_cod.training.task import Task

_SHOWN = 400
"""Characters of the first conversation that the log shows."""


class Conversations:
    """The data of one run, read once: samples, and the plan of rows for training and validation."""

    def __init__(self, raw: argparse.Namespace) -> None:
        """raw: the plain parse of the command line. ValueError for data that cannot be trained on."""
        self.chat = chat_format_of(raw.tokenizer_type, raw.tokenizer_model, raw.vocab_size, raw.chat_template)
        reading = Reading(raw.seq_length, raw.sft_too_long, raw.sft_layout, raw.sft_skip_bad_lines)
        self.train, counts = read_samples(raw.sft_data_path, self.chat, reading, say)
        _tell("training data", self.train, counts)
        first = counts.first if len(counts.first) <= _SHOWN else f"{counts.first[:_SHOWN]} ..."
        say(f"the first conversation, what is trained in [[ ]]: {first!r}")
        valid: Samples | None = None
        if raw.sft_valid_data_path:
            valid, counts = read_samples(raw.sft_valid_data_path, self.chat, reading, say)
            _tell("validation data", valid, counts)
        elif raw.sft_valid_share:
            self.train, valid = held_out(self.train, raw.sft_valid_share)
            if not len(valid) or not len(self.train):
                raise ValueError(
                    f"--sft-valid-share {raw.sft_valid_share}: {len(valid)} of {len(self.train) + len(valid)} "
                    "conversations fall to validation; name its files with --sft-valid-data-path"
                )
            say(f"held out to validate on: {len(valid):,} conversations")
        self.valid = valid
        plan = partial(Epochs, size=raw.seq_length, pack=raw.sft_packing)
        self.plan = plan(self.train.positions(), seed=raw.seed, epochs=raw.train_epochs)
        self.valid_plan = plan(valid.positions(), seed=None) if valid is not None else None
        self.share = float(self.train.positions().sum()) / (self.plan.rows_an_epoch * raw.seq_length)

    def fingerprint(self) -> str:
        """Of the tokens in training, their masks and their order: what a run that goes on must find unchanged."""
        digest = hashlib.blake2b(digest_size=16)
        for part in (self.train.ids, self.train.trained, self.train.starts, np.array(self.plan.rows_an_epoch)):
            digest.update(part.tobytes())
        return digest.hexdigest()

    @property
    def padding(self) -> int:
        """The id that rows are filled up with; it is never a label that counts."""
        return self.chat.encoder.specials.get(self.chat.encoder.variables.get("eos_token", ""), 0)


def _tell(what: str, samples: Samples, counts: Counts) -> None:
    tokens = int(samples.positions().sum())
    line = (
        f"{what}: {len(samples):,} conversations, {tokens:,} tokens, of which {samples.answer_tokens():,} are trained"
    )
    left_out = {
        "truncated": counts.truncated,
        "dropped as too long": counts.dropped,
        "bad lines left out": counts.bad,
    }
    say("; ".join([line, *(f"{number:,} {name}" for name, number in left_out.items() if number)]))
    for error in counts.shown:
        say(f"  left out: {error}")


class FineTuning:
    """One run: what ``Task`` asks for, around its ``Conversations``."""

    def __init__(self) -> None:
        self._data: Conversations | None = None
        self._forward_step = forward_step

    def prepare(self, flags: list[str], raw: argparse.Namespace) -> list[str]:
        """Read the data, and turn epochs and the start into Megatron's own flags."""
        check_flags(raw)
        flags = start_flags(flags, raw)
        self._data = data = Conversations(raw)
        batch, rows = raw.global_batch_size, data.plan.rows_an_epoch
        say(
            f"{'packed into' if raw.sft_packing else 'one conversation a row:'} {rows:,} rows of {raw.seq_length}, "
            f"{100 * data.share:.1f}% tokens; an epoch is {rows / batch:,.1f} steps of {batch}"
        )
        if raw.train_epochs:
            steps = -(-rows * raw.train_epochs // batch)
            say(f"--train-epochs {raw.train_epochs}: {steps:,} steps")
            flags += ["--train-iters", str(steps)]
        flags += ["--eval-iters", str(self._validations(raw, data))]
        if raw.eval_interval is None:
            flags += ["--eval-interval", str(max(1, rows // batch))]
        return [
            *flags,
            *("--sft-data-fingerprint", data.fingerprint()),
            f"--chat-template={data.chat.template.text}",
        ]

    @staticmethod
    def _validations(raw: argparse.Namespace, data: Conversations) -> int:
        if data.valid_plan is None:
            say("no validation data: --sft-valid-data-path or --sft-valid-share names some")
            return 0
        batch, rows = raw.eval_global_batch_size or raw.global_batch_size, data.valid_plan.rows_an_epoch
        whole = -(-rows // batch)
        steps = min(whole, raw.eval_iters)
        part = "all" if steps == whole else f"only --eval-iters {steps} x {batch}"
        say(f"each validation sees {part} of its {rows:,} rows")
        return steps

    def datasets(self, counts: list[int], vp_stage: int | None = None) -> tuple[Any, Any, None]:
        """Megatron's provider: all stages read the same rows, so that each knows where samples begin."""
        args, data = get_args(), self._data
        assert data is not None
        if mpu.get_tensor_model_parallel_rank() != 0:
            return None, None, None
        rows = partial(Rows, size=args.seq_length, padding=data.padding)
        valid = None
        if data.valid is not None and data.valid_plan is not None and args.eval_iters:
            seen = Repeated(data.valid_plan, args.eval_iters * args.eval_global_batch_size)
            valid = rows(data.valid, seen, counts[1], split=Split.valid)
        return rows(data.train, data.plan, counts[0], split=Split.train), valid, None

    def step(self, data_iterator: Any, model: Any) -> Any:
        """Megatron's forward step."""
        return forward_step(data_iterator, model, packed=get_args().sft_packing)

    def check_data(self, args: Any, vocabulary: int | None) -> None:
        """ValueError for ids beyond the model's vocabulary, and for a run that would go on with other data."""
        data = self._data
        assert data is not None
        largest = max(int(part.ids.max()) for part in (data.train, data.valid) if part is not None)
        if vocabulary and largest >= vocabulary:
            raise ValueError(f"the tokenizer gave id {largest}, the model's vocabulary has {vocabulary} ids")
        checkpoint = None if args.finetune else checkpoint_to_load(args)
        if checkpoint is not None:
            before = getattr(saved_state(checkpoint).get("args"), "sft_data_fingerprint", None)
            if before != args.sft_data_fingerprint:
                raise ValueError(
                    f"{checkpoint} was trained on other conversations, or with another template or --seq-length: going on "
                    f"would mix up their order; to train on these, give --load {args.load} and another --save"
                )

    def share(self) -> float:
        """How much of a row is no padding."""
        assert self._data is not None
        return self._data.share


def start_flags(flags: list[str], raw: argparse.Namespace) -> list[str]:
    """The flags with which this start loads: all of what ``--save`` holds already, or else the weights of ``--load`` alone.

    So one command line starts a run and goes on with it. ``--pretrained-checkpoint`` names the weights where ``--load`` is
    the directory of ``--save``. ValueError where there are no weights.
    """
    own = [flag for flag in flags if flag != "--finetune"]
    newest = newest_whole(raw.save)[0] if raw.save else None
    if newest is not None:
        say(f"going on from {newest}")
        if not same_directory(raw.save, raw.load):
            own = without(own, "--ckpt-step")  # it says which weights to begin with
        return [*own, "--load", raw.save]
    base = raw.load
    if raw.pretrained_checkpoint and (not base or same_directory(base, raw.save)):
        base = raw.pretrained_checkpoint
    if latest_checkpoint(base) is None:
        hint = "; --pretrained-checkpoint names the one to begin with" if same_directory(base, raw.save) else ""
        raise ValueError(f"nothing to fine-tune: --load {base} holds no finished checkpoint{hint}")
    say(f"starting from the weights of {base}")
    return [*own, "--load", base, "--finetune"]


def task() -> Task:
    """A run of fine-tuning, its data still to be read."""
    run = FineTuning()

    def datasets_provider(counts: list[int], vp_stage: int | None = None) -> Any:
        return run.datasets(counts, vp_stage)

    datasets_provider.is_distributed = True  # type: ignore[attr-defined]  # each rank reads for itself
    return Task(
        program="sft",
        introduction=INTRODUCTION,
        datasets_provider=datasets_provider,
        forward_step=run.step,
        check_data=run.check_data,
        add_arguments=add_arguments,
        # A mean per micro-batch would weigh answers by how many others stand beside them.
        default_flags=("--calculate-per-token-loss", "--no-create-attention-mask-in-dataloader"),
        prepare=run.prepare,
        share_of_tokens=run.share,
    )
