"""The evaluation: parse, check, read, measure, report. ``evaluate.py`` is its command."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from megatron_cod.training import before_megatron  # noqa: F401

# isort: split
from megatron.training import get_tokenizer

from megatron_cod import __version__
from megatron_cod.common.files import check_writable
from megatron_cod.common.progress import Pace
from megatron_cod.console import log_rank0, this_rank
from megatron_cod.data.evaluation.texts import TextReading, read_texts
from megatron_cod.data.evaluation.token_sets import TokenSet, parse_sources, read_dataset
from megatron_cod.data.evaluation.windows import plan_windows
from megatron_cod.data.tokenizers.choice import BYTE_VOCABULARY
from megatron_cod.errors import Phase, UserError
from megatron_cod.estimate.memory import evaluation_memory
from megatron_cod.launch.exit_codes import fail, one_line_endings
from megatron_cod.launch.single_process import launch_unless_launched
from megatron_cod.training.data.tokenizer_in_use import trained_with
from megatron_cod.training.evaluation import report
from megatron_cod.training.evaluation.batch_size import micro_batch_size
from megatron_cod.training.evaluation.flags import PROGRAM, EvaluationArgs, check_flags, check_window
from megatron_cod.training.evaluation.scoring import Job, measure
from megatron_cod.training.faults.out_of_memory import reported_in_one_line
from megatron_cod.training.faults.signals import UntilTraining
from megatron_cod.training.flags.imports import import_schemes
from megatron_cod.training.flags.layout_checks import check_vocabulary
from megatron_cod.training.flags.model_options import TOKENIZER
from megatron_cod.training.flags.parser import build_parser
from megatron_cod.training.start import loading
from megatron_cod.training.start.checks import Need
from megatron_cod.training.start.prepare import LAUNCH, Start, StartHooks, prepare, replica_size
from megatron_cod.training.validation.fp32_logits import raise_logits

_KEPT = (*TOKENIZER, "micro_batch_size", "seq_length")
_MICRO_BATCHES = 4
"""Of a stage, in one call: the bubble is then no larger than a fifth."""


def _check_output(path: str | None) -> None:
    if path is None:
        return
    target = Path(path)
    check_writable(target.parent, f"--output {path}")
    if target.is_dir():
        raise UserError(f"--output {path} is a folder; name a file")


def _set_batches(given: int | None, raw: EvaluationArgs) -> None:
    """Set the batch sizes: a global batch is what one call of the schedule computes. given: ``--micro-batch-size``."""
    raw.micro_batch_size = given or micro_batch_size(raw, raw.micro_batch_size or 1)
    if raw.tokenizer_model and not Path(raw.tokenizer_model).exists():
        raise UserError(f"the checkpoint's --tokenizer-model {raw.tokenizer_model} does not exist; give its path")
    replicas = int(os.environ.get("WORLD_SIZE", "1")) // replica_size(raw)
    raw.global_batch_size = raw.micro_batch_size * replicas * _MICRO_BATCHES * raw.pipeline_model_parallel_size


def start_of(command_line: list[str]) -> tuple[Start, Path]:
    """(the start of the checkpoint's model at the requested layout, the checkpoint)."""
    import_schemes(command_line)
    given = build_parser(PROGRAM).parse_args(command_line)
    check_flags(given)
    _check_output(given.output)
    folder, checkpoint = loading.locate(given.load, given.ckpt_step)
    flags = loading.model_flags(folder, checkpoint, _KEPT, given.unset)
    # Last as well: the command line may name the checkpoint itself.
    flags += [*command_line, "--load", str(folder)]
    hooks = StartHooks(globals_set=lambda _: UntilTraining())  # a SIGTERM ends it
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    program = replace(PROGRAM, complete=partial(_set_batches, given.micro_batch_size))
    # Without --save there is no log of each rank: Megatron's 800 lines of arguments would hide the table.
    return prepare(flags, program, world_size, LAUNCH - {Need.RANKS}, hooks=hooks, quiet=True), checkpoint


def _encoder(args: EvaluationArgs, tokenizer: Any) -> Any:
    if args.tokenizer_type == "NullTokenizer":
        if args.vocab_size != BYTE_VOCABULARY:
            raise UserError(
                f"the checkpoint's NullTokenizer of {args.vocab_size} ids reads no text (of {BYTE_VOCABULARY}: bytes); "
                "give --tokenizer-type and --tokenizer-model, or a prefix of .bin/.idx"
            )
        return lambda text: list(text.encode("utf-8"))
    return tokenizer.tokenize


def _text_reading(args: EvaluationArgs, tokenizer: Any, vocabulary: int) -> TextReading:
    end = getattr(tokenizer, "eod", None)
    has_end = isinstance(end, int) and end >= 0
    return TextReading(
        encode=_encoder(args, tokenizer),
        vocabulary=vocabulary,
        end=end if has_end and args.eval_append_eod else None,
        json_key=args.eval_json_key,
        domain_key=args.eval_domain_key,
        skip_bad=args.eval_skip_bad_lines,
    )


def read_sets(args: EvaluationArgs) -> list[TokenSet]:
    """All that ``--eval-data`` names. UserError for unusable data."""
    tokenizer = get_tokenizer()
    vocabulary = check_vocabulary(args, tokenizer)
    found: list[TokenSet] = []
    compared_with = trained_with(args)
    for source in parse_sources(args.eval_data):
        if source.is_dataset:
            found.append(read_dataset(source, vocabulary, compared_with))
        else:
            found += read_texts(source, _text_reading(args, tokenizer, vocabulary), log_rank0)
    return found


def plan(args: EvaluationArgs, sets: list[TokenSet]) -> Job:
    """How the sets are cut into windows. UserError for a set in which nothing can be predicted."""
    stride = check_window(args.stride, args.seq_length)
    prefix = None if args.eval_prefix == "none" else getattr(get_tokenizer(), args.eval_prefix, None)
    if args.eval_prefix != "none" and (prefix is None or prefix < 0):
        raise UserError(f"--eval-prefix: the tokenizer has no {args.eval_prefix}")
    cut = partial(plan_windows, size=args.seq_length, stride=stride, prefixed=prefix is not None)
    windows = [cut(one.streams(args.eval_mode == "document")) for one in sets]
    for one, rows in zip(sets, windows, strict=True):
        if not len(rows):
            raise UserError(f"{one.name} has {len(one.ids)} tokens: there is nothing to predict")
    pipeline = args.pipeline_model_parallel_size
    interleaved = args.virtual_pipeline_model_parallel_size is not None
    micro = _MICRO_BATCHES * pipeline
    unit = pipeline if interleaved else 1
    multiple = 2 * args.context_parallel_size * args.tensor_model_parallel_size
    return Job(sets, windows, prefix, args.seq_length, args.micro_batch_size, micro, unit, multiple)


def _report(args: EvaluationArgs, checkpoint: Path, job: Job) -> None:
    documents, tokens = sum(one.documents for one in job.sets), sum(job.predicted())
    rows = sum(len(plan) for plan in job.windows)
    apart = args.stride or args.seq_length
    log_rank0(
        f"evaluating {checkpoint} ({args.norm_scheme}) by {args.eval_mode}: {len(job.sets)} sets, {documents:,} documents, "
        f"{tokens:,} tokens to predict in {rows:,} windows of up to {args.seq_length}, {apart} apart, "
        f"{job.micro_batch_size} at once"
    )


def _facts(args: EvaluationArgs, checkpoint: Path, pace: Pace) -> dict[str, Any]:
    return {
        "checkpoint": str(checkpoint),
        "iteration": args.iteration,
        "norm_scheme": args.norm_scheme,
        "mode": args.eval_mode,
        "window": args.seq_length,
        "stride": args.stride or args.seq_length,
        "prefix": args.eval_prefix,
        "processes": args.world_size,
        "seconds": round(pace.seconds(), 3),
        "tokens_per_second": round(pace.rate(), 1),
        "megatron_cod_version": __version__,
    }


def not_finite(job: Job, rows: list[list[int]]) -> str | None:
    """Where losses were NaN or infinite, on one line; None where they were not."""
    found = []
    for one, plan, bad in zip(job.sets, job.windows, rows, strict=True):
        if bad:
            first = int(plan.label[bad[0]])
            document = int((one.starts <= first).sum())
            place = f"predicting tokens {first} to {first + int(plan.length[bad[0]]) - 1}, in document {document}"
            found.append(f"in {len(bad)} of {len(plan)} windows of {one.name}, first {place}")
    return f"the loss is not finite {'; '.join(found)}" if found else None


def main() -> None:
    """Evaluate by the command line."""
    with one_line_endings(lambda: Phase.START):
        launch_unless_launched()
        start, checkpoint = start_of(sys.argv[1:])
        for line in start.notes:
            log_rank0(line)
        args = cast(EvaluationArgs, start.args)
        job = plan(args, read_sets(args))
        _report(args, checkpoint, job)
        if args.dry_run:
            log_rank0("dry run: arguments, checkpoint and data are in order")
            return
    last = this_rank() == args.world_size - 1
    progress = report.ProgressLines(sum(job.predicted()), partial(print, flush=True) if last else lambda _: None)
    in_one_line = partial(reported_in_one_line, args, lambda: "in evaluation", evaluation_memory)
    with one_line_endings(lambda: Phase.SET_UP), in_one_line():
        model = loading.build(args, start.model_config)
        raise_logits(model)
    with one_line_endings(lambda: Phase.TRAINING), in_one_line():
        totals = measure(job, model, progress.add)
    if totals is None or not last:
        return
    scores = [
        report.Score(one.name, one.documents, int(tokens), float(nats), one.text_bytes, len(bad))
        for one, tokens, nats, bad in zip(job.sets, totals.tokens, totals.losses, totals.not_finite, strict=True)
    ]
    rows, total = report.with_sums(scores, [one.group for one in job.sets])
    print("\n".join(report.table(rows, total)))
    print(f"{progress.pace.rate():,.0f} tokens/s", flush=True)
    if args.output:
        report.write(args.output, _facts(args, checkpoint, progress.pace), rows, total)
    message = not_finite(job, totals.not_finite)
    if message:
        fail(message, exit_code=1)
