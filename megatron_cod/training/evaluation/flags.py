"""The flags of ``evaluate.py``, and the options that exclude each other."""

from typing import Any, Protocol

from megatron_cod.args import MegatronArgs
from megatron_cod.common.lists import refuse_set
from megatron_cod.common.numbers import at_least
from megatron_cod.errors import UserError
from megatron_cod.training.task import Program

INTRODUCTION = """\
Perplexity and bits per byte of a checkpoint of any norm scheme, at any layout (docs/evaluation.md).

  megatron-cod evaluate --load runs/first \\
      --eval-data web=data/valid_text_document news=news.jsonl [layout flags, any Megatron flag]

The model's flags and --seq-length come from the run's directory; --micro-batch-size is chosen by memory. Flags win over
both. --eval-data takes prefixes of .bin/.idx, JSON lines and plain text (plain, .gz, .zst).
"""

MODES = ("stream", "document")
PREFIXES = ("none", "bos", "eod")


class EvaluationArgs(MegatronArgs, Protocol):
    """With the flags of ``evaluate.py``."""

    eval_data: list[str]
    eval_mode: str
    eval_prefix: str
    eval_json_key: str
    eval_domain_key: str | None
    eval_append_eod: bool
    eval_skip_bad_lines: bool
    stride: int | None
    output: str | None


def add_arguments(group: Any) -> None:
    """The flags that only evaluation has."""
    group.add_argument(
        "--eval-data",
        nargs="+",
        metavar="[NAME=]PATH",
        help="datasets: prefixes of .bin/.idx, or text files and globs, tokenized with the checkpoint's tokenizer",
    )
    group.add_argument(
        "--eval-mode",
        choices=MODES,
        default="stream",
        help="stream: documents one behind the other, as training sees them; document: none is context of another "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--stride",
        type=at_least(1),
        metavar="T",
        help="windows of --seq-length tokens begin T apart, and each counts the tokens that are new in it (default: "
        "--seq-length, no overlap)",
    )
    group.add_argument(
        "--eval-prefix",
        choices=PREFIXES,
        default="none",
        help="a token before each stream or document, so that its first token is predicted too (default: %(default)s)",
    )
    group.add_argument("--eval-json-key", default="text", metavar="KEY", help="where JSON lines have their text")
    group.add_argument("--eval-domain-key", metavar="KEY", help="a row for each value of this key of JSON lines")
    group.add_argument(
        "--no-eval-append-eod",
        dest="eval_append_eod",
        action="store_false",
        help="text: omit the end of document behind each, which is predicted where the tokenizer has one",
    )
    group.add_argument(
        "--eval-skip-bad-lines", action="store_true", help="text: skip unreadable documents, and count them"
    )
    group.add_argument("--output", metavar="FILE", help="the result as JSON")


PROGRAM = Program(program="evaluate", introduction=INTRODUCTION, add_arguments=add_arguments)


def check_flags(given: Any) -> None:
    """UserError, naming the flags, for what evaluation cannot do. given: the plain parse of the command line."""
    if not given.load:
        raise UserError("nothing to evaluate: give --load CHECKPOINT")
    if not given.eval_data:
        raise UserError("no data: give --eval-data [NAME=]PATH")
    if given.recipe:
        raise UserError("--recipe: the model's flags come from the directory of --load; give single ones beside it")
    refused = {
        "--save": given.save,
        "--data-path and its like": given.data_path or given.valid_data_path or given.test_data_path,
        "--global-batch-size (--micro-batch-size decides how much is computed at once)": given.global_batch_size,
    }
    refuse_set(refused, "evaluation does not take")


def check_window(stride: int | None, seq_length: int) -> int:
    """The stride; UserError where it would skip tokens."""
    if stride is not None and stride > seq_length:
        raise UserError(
            f"--stride {stride} is larger than the window of --seq-length {seq_length}: tokens would be skipped"
        )
    return stride or seq_length
