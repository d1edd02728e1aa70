"""Step times of norm schemes, one model each in one process."""

from collections.abc import Sequence
from functools import partial
from itertools import cycle

from megatron_cod.benchmark import activation_scaling
from megatron_cod.benchmark.engine import Engine, random_batches, start_megatron
from megatron_cod.benchmark.report import Report, rows_of
from megatron_cod.benchmark.timing import CLOCKS, Lap, interleave
from megatron_cod.schemes.table import get_scheme

REFERENCE = "pre_ln"
_QUIET = ("--mock-data", "--eval-iters", "0", "--logging-level", "40")


def compare_schemes(
    schemes: Sequence[str], megatron_flags: Sequence[str], *, rounds: int, warmup: int, threads: int, clock: str
) -> Report:
    """Time Megatron's train_step under each scheme; pre_ln is always among them.

    megatron_flags: ``--recipe FILE`` and any flag of pretrain. Raises ValueError for an unknown scheme and
    for what Megatron refuses.
    """
    with activation_scaling.registered():
        for name in schemes:
            get_scheme(name)
    names = [REFERENCE, *(name for name in dict.fromkeys(schemes) if name != REFERENCE)]
    args = start_megatron([*_QUIET, *megatron_flags], threads)
    engines = {name: Engine(args, name) for name in names}
    batches = random_batches(args, 4)

    def stepper(engine: Engine) -> partial[Lap]:
        # Each has its own turn through the same batches.
        turn = cycle(batches)
        return partial(lambda: engine.step(next(turn), CLOCKS[clock]))

    laps = interleave({name: stepper(engine) for name, engine in engines.items()}, rounds=rounds, warmup=warmup)
    tokens = args.global_batch_size * args.seq_length
    facts = {
        "layers": args.num_layers,
        "hidden": args.hidden_size,
        "ffn": args.ffn_hidden_size,
        "seq": args.seq_length,
        "global batch": args.global_batch_size,
        "micro batch": args.micro_batch_size,
        "dtype": str(args.params_dtype).removeprefix("torch."),
        "threads": threads,
        "rounds": rounds,
        "clock": clock,
    }
    return Report("Step time of norm schemes", REFERENCE, facts, rows_of(laps, REFERENCE, tokens), laps)
