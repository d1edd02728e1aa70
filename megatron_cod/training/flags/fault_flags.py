"""The flags about faults; docs/faults.md explains them."""

from typing import Any

from megatron_cod.common.numbers import at_least, not_negative

POLICIES = ("stop", "skip", "ignore")


def add_fault_options(group: Any) -> None:
    """Add them to an argparse group."""
    group.add_argument(
        "--on-nonfinite",
        choices=POLICIES,
        default="stop",
        help="NaN or infinity in loss or gradients: stop before the step is taken and name layer and rank, or skip the "
        "step and continue (default: %(default)s)",
    )
    group.add_argument(
        "--most-skipped-steps",
        type=at_least(0),
        default=10,
        metavar="N",
        help="with --on-nonfinite skip: stop after N such steps in a row (default: %(default)s)",
    )
    group.add_argument(
        "--loss-spike-factor",
        type=not_negative,
        default=10.0,
        metavar="F",
        help="warn of a loss F standard deviations of its noise above that of the last steps; 0: never "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--rewind-to",
        type=at_least(0),
        metavar="STEP",
        help="resume from this older checkpoint of --save; done once, newer checkpoints are kept aside",
    )
    group.add_argument(
        "--rewind-skip",
        type=at_least(0),
        default=0,
        metavar="K",
        help="with --rewind-to: pass over the data of the K steps after it (default: %(default)s)",
    )
    group.add_argument(
        "--hang-timeout",
        type=not_negative,
        metavar="SECONDS",
        help="end the job, naming the rank, when one gives no heartbeat or keeps all others waiting for so long; 0: "
        "never (default: half of --distributed-timeout-minutes)",
    )
    group.add_argument(
        "--time-limit",
        default="auto",
        metavar="MINUTES",
        help="save and stop in time for the end of the job: 'auto' asks Slurm, 'none', or minutes from the start "
        "(default: %(default)s)",
    )
