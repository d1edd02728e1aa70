"""Invalid schedules, refused before anything is built, with their flags. The rehearsal makes these checks too."""

from __future__ import annotations

from megatron_cod.args import MegatronArgs
from megatron_cod.errors import UserError
from megatron_cod.training.flags.batch_sizes import batch_sizes

_UNITS = ("iters", "samples")


def check_batches(args: MegatronArgs, replicas: int) -> None:
    """UserError for batch sizes that do not divide into micro-batches over the replicas.

    args: the plain parse of the command line, or after Megatron's validation.
    """
    if not args.micro_batch_size or not (args.global_batch_size or args.step_batch_size_schedule):
        return
    for _, size in batch_sizes(args).stages:
        if size % (args.micro_batch_size * replicas):
            flag = (
                "a batch size of --step-batch-size-schedule,"
                if args.step_batch_size_schedule
                else "--global-batch-size"
            )
            raise UserError(
                f"{flag} {size} is not a multiple of --micro-batch-size "
                f"{args.micro_batch_size} x {replicas} data-parallel replicas"
            )


def check_schedule(args: MegatronArgs, complete: bool = True) -> None:
    """UserError for a length or a learning rate schedule that makes no sense.

    args: the plain parse of the command line. complete: whether what is missing is an error too.
    """
    _refuse_negative(args)
    if args.train_iters and args.train_samples:
        raise UserError(
            f"--train-iters {args.train_iters} and --train-samples {args.train_samples} both set how long to train; give "
            "one of them"
        )
    unit, other = _UNITS if args.train_iters else _UNITS[::-1]
    length = getattr(args, f"train_{unit}")
    if complete and not length:
        raise UserError("how long to train is missing: give --train-tokens, --train-iters or --train-samples")
    if complete and args.lr is None:
        raise UserError("--lr is missing")
    for name in ("min_lr", "lr_warmup_init"):
        if args.lr is not None and getattr(args, name) > args.lr:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)} is larger than --lr {args.lr}")
    if not length:
        return
    for kind in ("lr_warmup", "lr_decay", "lr_wsd_decay"):
        if getattr(args, f"{kind}_{other}"):
            flag = f"--{kind}".replace("_", "-")
            raise UserError(
                f"{flag}-{other} does not go with --train-{unit}; give {flag}-{unit} or {flag}-tokens "
                "(--unset omits a recipe's)"
            )
    _check_phases(args, unit, getattr(args, f"lr_decay_{unit}") or length)


def _refuse_negative(args: MegatronArgs) -> None:
    lengths = (f"{kind}_{unit}" for kind in ("train", "lr_warmup", "lr_decay", "lr_wsd_decay") for unit in _UNITS)
    for name in (*lengths, "lr_warmup_fraction"):
        value = getattr(args, name)
        if value is not None and not value >= 0:  # NaN too
            raise UserError(f"--{name.replace('_', '-')} {value} must not be negative")


def _check_phases(args: MegatronArgs, unit: str, length: int) -> None:
    """Warm-up and decay within the schedule. length: where it ends, in ``unit``."""
    words = {"iters": "iterations", "samples": "samples"}[unit]
    fraction, warmup = args.lr_warmup_fraction, getattr(args, f"lr_warmup_{unit}")
    if fraction is not None:
        if warmup:
            raise UserError(
                f"--lr-warmup-fraction and --lr-warmup-{unit} both set how long to warm up; give one of them"
            )
        warmup = fraction * length
    if warmup >= length:
        given = f"--lr-warmup-{unit} {warmup}" if fraction is None else f"--lr-warmup-fraction {fraction}"
        raise UserError(
            f"{given} must be less than the {length} {words} of the schedule "
            f"(--lr-decay-{unit}, or --train-{unit}); for a short trial give --lr-warmup-{unit} {length // 10}"
        )
    decay, flag = getattr(args, f"lr_wsd_decay_{unit}"), f"--lr-wsd-decay-{unit}"
    if args.lr_decay_style == "WSD":
        if not decay:
            raise UserError(f"--lr-decay-style WSD: give {flag} or --lr-wsd-decay-tokens, its last phase")
        if warmup + decay > length:
            raise UserError(f"{flag} {decay} and a warm-up of {warmup:g} exceed the {length} {words} of the schedule")
    elif decay:
        raise UserError(f"{flag} does nothing under --lr-decay-style {args.lr_decay_style}; give WSD, or --unset it")
