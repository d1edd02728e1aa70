"""Our own flags beside Megatron's, and help that can be read."""

import argparse
import os
import re
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, NoReturn

from megatron_cod.common.numbers import at_least
from megatron_cod.errors import UserError, did_you_mean
from megatron_cod.schemes.init_policy import INIT_POLICIES
from megatron_cod.schemes.options import CommonOptions, add_flags
from megatron_cod.schemes.table import DEFAULT, SCHEMES, get_scheme
from megatron_cod.training.flags.defaults import CHOICES
from megatron_cod.training.flags.fault_flags import add_fault_options
from megatron_cod.training.flags.token_counts import add_token_options
from megatron_cod.training.task import Program

_COMMON = """\
Megatron flags used most (all of them: --help-megatron):
  --num-layers --hidden-size --num-attention-heads --ffn-hidden-size --seq-length     the model
  --micro-batch-size --global-batch-size --train-iters --lr --min-lr --seed           the optimisation
  --tensor-model-parallel-size --pipeline-model-parallel-size --sequence-parallel     the layout
  --num-virtual-stages-per-pipeline-rank --use-distributed-optimizer                  the layout, further
  --save --load --save-interval --eval-interval --eval-iters --log-interval           checkpoints and logs
"""


_LONGEST = 400
"""Of what argparse says, which repeats a value whole."""


class UsageError(UserError):
    """A wrong command line; its text is the one line the user sees."""


def _one_line_error(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    unknown = re.match(r"unrecognized arguments: (--[\w-]+)", message)
    hint = did_you_mean(unknown[1], parser._option_string_actions) if unknown else ""
    if len(message) > _LONGEST:
        message = f"{message[:_LONGEST]}..."
    raise UsageError(f"{message}{hint} (--help lists the flags)")


def _scheme(text: str) -> str:
    try:
        return get_scheme(text).name
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _add_scheme_options(group: Any) -> None:
    """The options of every registered scheme, and those that go with all."""
    known: set[str] = set()
    for kind in (*(row.options for row in SCHEMES.values()), CommonOptions):
        add_flags(group, kind, known)


def _default_inits() -> str:
    by_policy: dict[str, list[str]] = {}
    for row in SCHEMES.values():
        by_policy.setdefault(row.default_init, []).append(row.name)
    usual = max(by_policy, key=lambda policy: len(by_policy[policy]))
    others = [f"{policy} for {', '.join(of)}" for policy, of in by_policy.items() if policy != usual]
    return "; ".join([*others, f"{usual} for the others"])


class _HelpMegatron(argparse.Action):
    """Megatron's whole help, hundreds of flags."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        argparse.ArgumentParser.print_help(parser)
        raise SystemExit(0)


def add_arguments(parser: argparse.ArgumentParser, program: Program | None = None) -> argparse.ArgumentParser:
    """Megatron's ``extra_args_provider``: our flags, one-line errors, short help.

    program: whose flags and help are included.
    """
    group = parser.add_argument_group("megatron_cod")
    group.add_argument(
        "--recipe", metavar="NAME", help="recipe of the package or a YAML file; the command line wins over it"
    )
    group.add_argument("--unset", nargs="+", default=[], metavar="KEY", help="recipe keys to omit, e.g. --unset swiglu")
    group.add_argument(
        "--import",
        dest="import_modules",
        nargs="+",
        action="extend",
        default=[],
        metavar="MODULE",
        help="import Python modules that register norm schemes of your own (docs/schemes.md)",
    )
    group.add_argument(
        "--norm-scheme",
        type=_scheme,
        default=DEFAULT,
        metavar="NAME",
        help=f"norm scheme of every block: {', '.join(SCHEMES)} (default: %(default)s)",
    )
    group.add_argument(
        "--init-policy",
        choices=list(INIT_POLICIES),
        help=f"initialisation of a block's projections (default: the scheme's own: {_default_inits()})",
    )
    _add_scheme_options(group)
    group.add_argument(
        "--backend",
        choices=CHOICES,
        default="auto",
        help="kernels of the layers: auto takes Transformer Engine, then Apex, then torch, as installed; "
        "--transformer-impl, Megatron's own flag, wins over it (default: auto)",
    )
    group.add_argument(
        "--compile-layers",
        action="store_true",
        help="torch.compile for layers of the torch backend",
    )
    group.add_argument(
        "--override-scheme-check",
        action="store_true",
        help="load a checkpoint although it was trained under another norm scheme",
    )
    group.add_argument(
        "--override-model-check",
        action="store_true",
        help="load a checkpoint into a model that computes another function of it (for example, another --rotary-base)",
    )
    group.add_argument(
        "--keep-last-checkpoints",
        type=at_least(1),
        metavar="K",
        help="delete older checkpoints, but multiples of --save-retain-interval",
    )
    group.add_argument(
        "--hf-export-interval",
        type=at_least(1),
        metavar="N",
        help="every N steps, export the checkpoint to SAVE/hf for Hugging Face, in the background",
    )
    group.add_argument(
        "--verify-checkpoint",
        action="store_true",
        help="read all of the checkpoint to load before, and compare its checksums: one with changed bytes is passed over "
        "in SAVE, and refused elsewhere",
    )
    group.add_argument(
        "--depth-monitor-interval",
        type=at_least(1),
        metavar="N",
        help="every N steps, per global layer: variance of the stream, branch over stream, angle, gradient, gamma",
    )
    group.add_argument(
        "--rank-log-dir",
        metavar="DIR",
        help="where each rank's file is, with all that it and Megatron print; 'none': all of it on the console "
        "(default: SAVE/logs; without --save none)",
    )
    group.add_argument(
        "--peak-tflops",
        type=float,
        metavar="X",
        help="dense bf16 TFLOP/s of one device, for MFU (default: known for NVIDIA's A100, H100, H200, B200, L40S)",
    )
    group.add_argument("--metrics-file", metavar="FILE", help="JSON lines of the metrics (default: SAVE/metrics.jsonl)")
    group.add_argument(
        "--sample-data",
        action="store_true",
        help="where no data is given, pretrain on a megabyte of speeches that comes with the package (recipe debug)",
    )
    group.add_argument(
        "--dry-run",
        action="store_true",
        help="check arguments, recipe, data and checkpoint, print the resolved arguments as YAML, train nothing",
    )
    add_token_options(group)
    faults = parser.add_argument_group("when something goes wrong (docs/faults.md)")
    add_fault_options(faults)
    group.add_argument("--help-megatron", action=_HelpMegatron, nargs=0, help="print the help of every Megatron flag")
    own = parser.add_argument_group("the program's flags")
    if program is not None:
        program.add_arguments(own)

    def print_help(*_: Any) -> None:
        name = program.program if program else "megatron_cod"
        formatter = argparse.HelpFormatter(prog=name, max_help_position=32)
        for title, section in ((f"{name} flags", own), ("megatron_cod flags", group), (faults.title, faults)):
            if section._group_actions:
                formatter.start_section(title)
                formatter.add_arguments(section._group_actions)
                formatter.end_section()
        print((program.introduction + "\n" if program else "") + formatter.format_help() + "\n" + _COMMON)

    parser.error = partial(_one_line_error, parser)  # type: ignore[method-assign]
    parser.print_help = print_help  # type: ignore[method-assign,assignment]
    return parser


_BUILT: dict[Any, argparse.ArgumentParser] = {}
_OF_ENVIRONMENT = {"local_rank": ("LOCAL_RANK", 0), "inprocess_active_world_size": ("WORLD_SIZE", 1)}
"""Argument -> the variable that is its default in Megatron-Core 0.19.2, and the default without it."""


def build_parser(program: Program | None = None) -> argparse.ArgumentParser:
    """Megatron's parser with our flags. The same object for the same schemes: building it takes longer than parsing."""
    of = program and (program.program, program.introduction, program.add_arguments)
    key = (of, tuple((row.name, row.options) for row in SCHEMES.values()))
    if key not in _BUILT:
        _BUILT[key] = _build(program)
    for action in _BUILT[key]._actions:
        if action.dest in _OF_ENVIRONMENT:  # a rank may be forked from a process that has built the parser
            variable, otherwise = _OF_ENVIRONMENT[action.dest]
            action.default = int(os.environ.get(variable, otherwise))
    return _BUILT[key]


def _build(program: Program | None) -> argparse.ArgumentParser:
    from megatron.training.arguments import add_megatron_arguments

    parser = add_arguments(add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False)), program)
    for action in parser._actions:
        action.help = _expandable(action.help, parser)
        if action.type not in (None, int, float, str, bool):  # these raise ValueError alone
            action.type = _refusing(action)
    return parser


def _expandable(text: str | None, parser: argparse.ArgumentParser) -> str | None:
    """A help text that argparse can fill in: Megatron-Core 0.19.2 has one with a percent sign of its own."""
    try:
        return text and text % _Anything(prog=parser.prog) and text
    except (ValueError, TypeError):
        return text and text.replace("%", "%%")


class _Anything(dict[str, Any]):
    """What argparse would fill in, whatever it is called."""

    def __missing__(self, _: str) -> int:
        return 0


def _refusing(action: argparse.Action) -> Callable[[str], Any]:
    """The action's type, with one line for any exception: argparse knows TypeError and ValueError alone."""
    kind: Callable[[str], Any] = action.type  # type: ignore[assignment]

    @wraps(kind)
    def converted(text: str) -> Any:
        try:
            return kind(text)
        except (TypeError, ValueError, argparse.ArgumentTypeError):
            raise
        except Exception:
            names = [str(getattr(one, "name", one)) for one in action.choices or ()]
            known = f"; there are {', '.join(names)}" if 0 < len(names) < 20 else ""
            raise argparse.ArgumentTypeError(f"invalid value: {text!r}{known}") from None

    return converted
