"""One start for every program: the same checks, the same outcome, arguments as Megatron parses them."""

import argparse
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import get_type_hints

import pytest

from megatron_cod.args import MegatronArgs
from megatron_cod.preflight.job import describe
from megatron_cod.rehearsal.launch import provided, read_launch
from megatron_cod.rehearsal.plan import NotPlanned, make_plan
from megatron_cod.training.data import hub_tokenizer
from megatron_cod.training.evaluation.flags import PROGRAM, EvaluationArgs
from megatron_cod.training.fine_tuning.flags import FineTuningArgs
from megatron_cod.training.fine_tuning.task import task
from megatron_cod.training.flags import parser, recipe_files, recipes
from megatron_cod.training.flags.defaults import default_flags
from megatron_cod.training.flags.model_options import scheme_options
from megatron_cod.training.flags.parser import add_arguments, build_parser
from megatron_cod.training.pretraining import TASK
from megatron_cod.training.start import checks
from megatron_cod.training.start.checks import CHECKS, Check, Need, Phase, applies
from megatron_cod.training.start.prepare import LAUNCH, as_megatron_parses
from megatron_cod.training.start.settings import Settings
from tests.conftest import ROOT
from tests.distributed.launch import run_training_ranks
from tests.rehearsal.jobs import SMALL


def _without_wandb() -> None:
    sys.modules["wandb"] = None  # type: ignore[assignment]


def _without_hub() -> None:
    hub_tokenizer._unreachable = lambda _: "Network is unreachable"


def _nothing() -> None: ...


@dataclass(frozen=True)
class Refused:
    """Flags after SMALL that one check refuses, and what its line holds."""

    flags: list[str]
    text: str
    noted: bool = False
    """Whether a rehearsal on a machine without GPUs only notes it."""
    dropped: tuple[str, ...] = ()
    """Of SMALL."""
    before: Callable[[], None] = field(default=_nothing)
    """Called in the launch first."""


PADDED = ["--padded-vocab-size", "512"]
SAVE = ["--save", "SAVE", "--save-interval", "2"]
OFFLOAD = ["--optimizer-cpu-offload", "--bf16", "--use-precision-aware-optimizer", "--use-distributed-optimizer"]
EXAMPLES = {
    "options that need a GPU": [Refused(["--log-device-memory-used"], "--log-device-memory-used needs a GPU", True)],
    "packages": [Refused(["--adlr-autoresume"], "--adlr-autoresume: NVIDIA's userlib is not installed", True)],
    "hub tokenizer": [
        Refused(
            ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", "some/tokenizer", *PADDED],
            "--tokenizer-model some/tokenizer is no folder here",
            True,
            before=_without_hub,
        )
    ],
    "layout": [
        Refused(["--tensor-model-parallel-size", "2"], "the layout takes a multiple of 2"),
        Refused(["--global-batch-size", "3"], "--global-batch-size 3 is not a multiple of"),
    ],
    "ranges of numbers": [Refused(["--norm-epsilon", "nan"], "--norm-epsilon nan must be a finite number")],
    "flags that break": [Refused(["--init-method-xavier-uniform"], "--init-method-xavier-uniform is not supported")],
    "flags that do nothing": [Refused(["--reset-attention-mask"], "--reset-attention-mask does nothing under")],
    "schedule": [Refused(["--min-lr", "9"], "--min-lr 9.0 is larger than --lr")],
    "optimizer": [Refused(["--optimizer", "soap"], "--optimizer soap is not supported")],
    "optimizer on the host": [Refused(OFFLOAD, "--optimizer-cpu-offload needs a GPU", True)],
    "saving": [Refused([*SAVE, "--async-save"], "--async-save is not supported")],
    "exports": [
        Refused([*SAVE, "--hf-export-interval", "3"], "--hf-export-interval 3 is not a multiple of --save-interval 2"),
        Refused(["--hf-export-interval", "3"], "--hf-export-interval 3 needs --save"),
    ],
    "the exported model": [Refused([*SAVE, "--hf-export-interval", "4", "--norm-scheme", "post_ln"], "post_ln cannot")],
    "fault handling": [
        Refused(["--rewind-skip", "5"], "--rewind-skip"),
        Refused(["--time-limit", "soon"], "--time-limit soon"),
    ],
    "W&B": [
        Refused(
            ["--wandb-project", "x", "--wandb-exp-name", "y"],
            "--wandb-project needs the package",
            True,
            before=_without_wandb,
        )
    ],
    "the directory of --save": [
        Refused(["--save", "/dev/null/x", "--save-interval", "2"], "--save /dev/null/x cannot be written")
    ],
    "the model": [Refused(["--init-model-with-meta-device"], "leaves the weights without values")],
    "compiled layers": [Refused(["--compile-layers", "--hidden-dropout", "0.1"], "--compile-layers does not support")],
    "vocabulary": [Refused(["--padded-vocab-size", "8"], "the model's vocabulary only 8")],
    "data": [Refused(["--train-data-path", "nowhere", "--eval-iters", "0"], "nowhere", dropped=("--mock-data",))],
    "the checkpoint of --load": [Refused(["--load", "recipes", "--ckpt-step", "3"], "recipes")],
}
NOT_BY_FLAGS = {
    "devices": "asks the machine: tests/cuda/test_bad_devices.py",
    "the program's flags": "pretraining refuses none; fine-tuning: tests/training/fine_tuning/test_sft.py",
    "no other run in --save": "asks the processes: tests/training/faults/test_save_claim.py",
    "ranks agree": "asks the other ranks: tests/launch/test_start_agreement.py",
}
CASES = [(name, case) for name, examples in EXAMPLES.items() for case in examples]


def test_every_check_has_an_example():
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names)
    assert sorted(names) == sorted([*EXAMPLES, *NOT_BY_FLAGS])


def _line(error: str) -> str:
    return " ".join(error.removeprefix("error: ").split())


@pytest.mark.parametrize(("name", "case"), CASES, ids=[f"{name}: {case.flags[0]}" for name, case in CASES])
@pytest.mark.slow_except(
    "layout: --tensor-model-parallel-size",
    "flags that do nothing: --reset-attention-mask",
    "saving: --save",
    "the model: --init-model-with-meta-device",
    "the checkpoint of --load: --load",
)
def test_launch_dry_run_rehearsal_and_preflight_agree(name, case, tmp_path, monkeypatch):
    flags = [flag for flag in SMALL if flag not in case.dropped]
    flags += [str(tmp_path / "run") if flag == "SAVE" else flag for flag in case.flags]
    launched = run_training_ranks(1, flags, before=case.before)[0]
    dry = run_training_ranks(1, [*flags, "--dry-run"], before=case.before)[0]
    error = re.search(r"^error: .*", launched.output, re.MULTILINE)
    assert launched.code == dry.code == 2 and error, launched.output + dry.output
    line = _line(error.group())
    assert case.text in line and f"error: {line}" in dry.output
    if case.before is _without_wandb:
        monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr(hub_tokenizer, "_unreachable", lambda _: "Network is unreachable")
    if case.noted:
        assert f"{line}; not checked" in read_launch(flags, 1).notes
        assert f"{line}; not checked" in describe(1, flags)["notes"]
        return
    with pytest.raises(ValueError) as refused:
        read_launch(flags, 1)
    assert _line(str(refused.value)) == line
    assert describe(1, flags)["error"] == line


MLA = ["--multi-latent-attention", "--q-lora-rank", "16", "--kv-lora-rank", "16"]
ACCEPTED = {
    "the control": [],
    "multi-latent attention, not counted": MLA,
    "experts": ["--num-experts", "2", "--moe-ffn-hidden-size", "48", "--moe-token-dispatcher-type", "allgather"],
    "a scheme with options": ["--norm-scheme", "hyper_connections", "--hyper-connections-streams", "2"],
}


@pytest.mark.parametrize("name", ACCEPTED)
@pytest.mark.slow_except("multi-latent attention, not counted")
def test_what_the_launch_accepts_the_others_accept(name):
    flags = [*SMALL, *ACCEPTED[name]]
    dry = run_training_ranks(1, [*flags, "--dry-run"])[0]
    assert dry.code == 0, dry.output
    launch, described = read_launch(flags, 1), describe(1, flags)
    assert described["error"] == ""
    uncounted = name.endswith("not counted")
    assert (described["memory_bytes"] is None) is uncounted
    if uncounted:
        with pytest.raises(NotPlanned, match="the rehearsal cannot count --"):
            make_plan(launch)


def test_the_rehearsal_makes_every_check_that_needs_no_other_process():
    made = {check.name for check in CHECKS if applies(check, TASK, provided())}
    assert made == {check.name for check in CHECKS if not check.needs & {Need.PROCESSES, Need.RANKS}}


def test_the_launch_makes_every_check():
    assert all(applies(check, TASK, LAUNCH) for check in CHECKS)


def test_evaluation_makes_every_check_that_is_not_of_training():
    made = {check.name for check in CHECKS if applies(check, PROGRAM, LAUNCH - {Need.RANKS})}
    assert made == {check.name for check in CHECKS if not check.training}


def test_a_check_that_is_added_is_made_by_the_rehearsal(monkeypatch):
    """What the table is for: one more row, and every program has it."""

    def refuse(start: checks.StartContext) -> None:
        raise ValueError(f"no learning rate of {start.raw.lr}")

    row = Check(name="new", phase=Phase.SCHEDULE, run=refuse, training=True)
    monkeypatch.setattr(checks, "CHECKS", (*CHECKS, row))
    with pytest.raises(ValueError, match="no learning rate of"):
        read_launch(SMALL, 1)
    monkeypatch.setattr(checks, "CHECKS", (*CHECKS, replace(row, needs=frozenset({Need.RANKS}))))
    read_launch(SMALL, 1)


READERS = {
    "validate_args": {"megatron_cod/training/start/prepare.py", "megatron_cod/rehearsal/worker.py"},
    "add_megatron_arguments": {"megatron_cod/training/flags/parser.py", "megatron_cod/huggingface/recipe.py"},
    "resolve_command_line": {
        "megatron_cod/training/flags/command_line.py",
        "megatron_cod/training/start/prepare.py",
        "megatron_cod/rehearsal/worker.py",
        "megatron_cod/benchmark/engine.py",
    },
    "parse_and_validate_args": set(),
    "parse_args_of_megatron": set(),
}
"""What reads a command line, and the files that may. The rehearsal's worker shortens arguments that passed
the checks; a benchmark asks whether a tokenizer is given; an imported model's record is Megatron's alone."""


@pytest.mark.parametrize("name", READERS)
def test_one_place_reads_command_lines(name):
    pattern = r"import .*\bparse_args\b" if name == "parse_args_of_megatron" else rf"\b{name}\("
    sources = [file for folder in ("megatron_cod", "tools", "examples") for file in ROOT.glob(f"{folder}/**/*.py")]
    found = {str(file.relative_to(ROOT)) for file in sources if re.search(pattern, file.read_text())}
    assert found == READERS[name]


@pytest.mark.parametrize(
    "recipe", sorted(path.name for path in (ROOT / "recipes").glob("*.yaml") if "sft" not in path.name)
)
@pytest.mark.slow_except("debug.yaml", "llama_1b.yaml", "llama_7b.yaml", "c4.yaml")
def test_arguments_are_those_that_megatron_parses(recipe, monkeypatch):
    from megatron.training import arguments as megatrons

    monkeypatch.setenv("WORLD_SIZE", "12")
    monkeypatch.setattr(parser, "_BUILT", {})  # the default of one of Megatron's flags is that of the environment
    words = recipes.recipe_flags(recipe_files.load_recipe(ROOT / "recipes" / recipe), build_parser())
    words = [*default_flags(words)[0], *words]
    raw = build_parser().parse_args(words)
    monkeypatch.setattr(sys, "argv", ["pretrain", *words])
    assert vars(as_megatron_parses(raw, 12)) == vars(megatrons.parse_args(add_arguments))


def test_settings_are_our_flags_but_those_of_schemes():
    titles = ("megatron_cod", "when something goes wrong (docs/faults.md)")
    groups = [group for group in build_parser()._action_groups if group.title in titles]
    ours = {action.dest for group in groups for action in group._group_actions}
    assert len(groups) == 2
    assert {one.name for one in fields(Settings)} == ours - {"help_megatron"} - set(scheme_options())


def test_the_parser_is_built_once(monkeypatch):
    built = []
    real = argparse.ArgumentParser.__init__

    def init(self, *rest, **named):
        built.append(self)
        real(self, *rest, **named)

    read_launch(SMALL, 1)
    monkeypatch.setattr(argparse.ArgumentParser, "__init__", init)
    read_launch(SMALL, 1)
    assert len([parser for parser in built if len(parser._actions) > 100]) == 0


SET_BY_THE_LOOP = {
    "curr_iteration",
    "iteration",
    "consumed_train_samples",
    "consumed_valid_samples",
    "do_train",
    "do_valid",
}
"""And not by the start. Megatron's validation sets the two counts of samples to 0."""


@pytest.mark.parametrize(
    ("kind", "program"), [(MegatronArgs, TASK), (FineTuningArgs, task()), (EvaluationArgs, PROGRAM)]
)
def test_the_typed_fields_are_those_of_the_arguments(kind, program):
    """mypy holds the package to these fields; here they are held to what Megatron and our parsers have."""
    named = get_type_hints(kind).keys()
    parsed = {action.dest for action in build_parser(program)._actions}
    assert named <= parsed | vars(read_launch(SMALL, 1).args).keys() | SET_BY_THE_LOOP
    if kind is not MegatronArgs:
        assert named - get_type_hints(MegatronArgs).keys() <= parsed
        assert named > get_type_hints(MegatronArgs).keys()


def test_every_typed_field_is_read():
    text = "\n".join(file.read_text() for file in (ROOT / "megatron_cod").rglob("*.py") if file.name != "args.py")
    unread = [name for name in get_type_hints(MegatronArgs) if not re.search(rf"\b{name}\b", text)]
    assert unread == []
