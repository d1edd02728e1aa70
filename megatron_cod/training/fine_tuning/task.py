"""The task of ``sft.py``: conversations from JSON lines, packed into rows, loss per token of the answers."""

from functools import partial
from typing import Any

from megatron_cod.training import before_megatron  # noqa: F401

# isort: split
from megatron.core import mpu
from megatron.core.datasets.utils import Split
from megatron.training import get_args

from megatron_cod.checkpoint.directory import latest_checkpoint, newest_whole, same_directory
from megatron_cod.checkpoint.selection import checkpoint_to_load, saved_state
from megatron_cod.console import log_rank0
from megatron_cod.data.chat.packing import Repeated
from megatron_cod.data.chat.rows import Rows
from megatron_cod.errors import UserError
from megatron_cod.training.data.batches import forward_step
from megatron_cod.training.fine_tuning.data import Conversations
from megatron_cod.training.fine_tuning.flags import INTRODUCTION, FineTuningArgs, add_arguments, check_flags
from megatron_cod.training.task import Task


class FineTuning:
    """One run: what ``Task`` asks for, around its ``Conversations``."""

    def __init__(self) -> None:
        self._data: Conversations | None = None

    def complete(self, raw: FineTuningArgs) -> None:
        """Read the data, and set Megatron's own arguments for the epochs and for where the run starts."""
        choose_start(raw)
        self._data = data = Conversations(raw, log_rank0)
        batch, rows = raw.global_batch_size, data.plan.rows_an_epoch
        log_rank0(
            f"{'packed into' if raw.sft_packing else 'one conversation a row:'} {rows:,} rows of {raw.seq_length}, "
            f"{100 * data.share:.1f}% tokens; an epoch is {rows / batch:,.1f} steps of {batch}"
        )
        if raw.train_epochs:
            steps = -(-rows * raw.train_epochs // batch)
            log_rank0(f"--train-epochs {raw.train_epochs}: {steps:,} steps")
            raw.train_iters = steps
        raw.eval_iters = self._validations(raw, data)
        if raw.eval_interval is None:
            raw.eval_interval = max(1, rows // batch)
        raw.sft_data_fingerprint, raw.chat_template = data.fingerprint(), data.chat.template.text

    @staticmethod
    def _validations(raw: FineTuningArgs, data: Conversations) -> int:
        if data.valid_plan is None:
            log_rank0("no validation data: --sft-valid-data-path or --sft-valid-share names some")
            return 0
        batch, rows = raw.eval_global_batch_size or raw.global_batch_size, data.valid_plan.rows_an_epoch
        whole = -(-rows // batch)
        steps = min(whole, raw.eval_iters)
        part = "all" if steps == whole else f"only --eval-iters {steps} x {batch}"
        log_rank0(f"each validation sees {part} of its {rows:,} rows")
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

    def check_data(self, args: FineTuningArgs, vocabulary: int | None) -> None:
        """UserError for ids beyond the model's vocabulary, and for a run that would continue with other data."""
        data = self._data
        assert data is not None
        largest = max(int(part.ids.max()) for part in (data.train, data.valid) if part is not None)
        if vocabulary and largest >= vocabulary:
            raise UserError(f"the tokenizer gave id {largest}, the model's vocabulary has {vocabulary} ids")
        checkpoint = None if args.finetune else checkpoint_to_load(args)
        if checkpoint is not None:
            before = getattr(saved_state(checkpoint).get("args"), "sft_data_fingerprint", None)
            if before != args.sft_data_fingerprint:
                raise UserError(
                    f"{checkpoint} was trained on other conversations, or with another template, --seq-length or --seed: "
                    f"resuming would mix up their order; to train on these, give --load {args.load} and another --save"
                )

    def share(self) -> float:
        """How much of a row is no padding."""
        assert self._data is not None
        return self._data.share


def choose_start(raw: FineTuningArgs) -> None:
    """Set what this start loads: all of what ``--save`` holds already, or else the weights of ``--load`` alone.

    So one command line starts a run and resumes it. ``--pretrained-checkpoint`` names the weights where ``--load`` is the
    directory of ``--save``. UserError where there are no weights.
    """
    newest = newest_whole(raw.save)[0] if raw.save else None
    if raw.save and newest is not None:
        log_rank0(f"resuming from {newest}")
        if not same_directory(raw.save, raw.load):
            raw.ckpt_step = None  # it names the weights to begin with
        raw.load, raw.finetune = raw.save, False
        return
    base = raw.load
    if raw.pretrained_checkpoint and (not base or same_directory(base, raw.save)):
        base = raw.pretrained_checkpoint
    if base is None or latest_checkpoint(base) is None:
        hint = "; --pretrained-checkpoint names the one to begin with" if same_directory(base, raw.save) else ""
        raise UserError(f"nothing to fine-tune: --load {base} holds no finished checkpoint{hint}")
    log_rank0(f"starting from the weights of {base}")
    raw.load, raw.finetune = base, True


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
        # A mean per micro-batch would weigh answers by how many others are beside them.
        default_flags=("--calculate-per-token-loss", "--no-create-attention-mask-in-dataloader"),
        check_flags=check_flags,
        complete=run.complete,
        fixes_evaluation_sets=False,
        share_of_tokens=run.share,
    )
