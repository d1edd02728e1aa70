"""A flag that another flag makes void is refused or told; every flag of Megatron's is classified."""

import re

import pytest

from megatron_cod.errors import UserError
from megatron_cod.rehearsal.launch import read_launch
from megatron_cod.training.fine_tuning.task import task
from megatron_cod.training.flags import void
from megatron_cod.training.flags.command_line import given_by, resolve_command_line
from megatron_cod.training.flags.parser import build_parser
from megatron_cod.training.flags.ranges import flag_of
from megatron_cod.training.flags.void import VOID, check_void
from megatron_cod.training.flags.void_row import never
from megatron_cod.training.pretraining import TASK
from tests.conftest import ROOT
from tests.rehearsal.jobs import DEBUG, SMALL
from tests.training.flags.flags_that_act import ACT
from tests.training.flags.void_cases import flags_of, situation


@pytest.fixture(scope="module")
def parser():
    return build_parser(TASK)


def _id(row):
    return f"{row.names[:30]} {row.why[:30]}"


def _lines(args, parser, row):
    """What the row says of these arguments, among what all rows say."""
    try:
        return [line for line in check_void(args, parser._actions, trains=True) if line.endswith(row.why)]
    except UserError as error:
        return [str(error)] if str(error).endswith(row.why) else []


@pytest.mark.parametrize("row", VOID, ids=_id)
def test_every_flag_of_every_row_warns_or_is_refused_without_its_condition(row, parser, monkeypatch):
    monkeypatch.setattr(void, "VOID", (row,))
    base = parser.parse_args([])
    for name in flags_of(row, parser):
        args = situation(row, name, False, parser, base)
        assert args is not None, f"{name} always acts"
        (line,) = _lines(args, parser, row)
        assert row.refused != line.startswith("WARNING: ")
        assert any(re.search(rf"{flag_of(one)}\b", line) for one in parser._actions if one.dest == name)


@pytest.mark.parametrize("row", [row for row in VOID if row.acts is not never], ids=_id)
def test_no_flag_of_a_row_is_named_under_its_condition(row, parser, monkeypatch):
    monkeypatch.setattr(void, "VOID", (row,))
    base = parser.parse_args([])
    for name in flags_of(row, parser):
        args = situation(row, name, True, parser, base)
        assert args is not None, f"{name} never acts"
        assert _lines(args, parser, row) == []


def test_every_name_of_a_row_is_a_flag(parser):
    names = {one.dest for one in parser._actions if one.option_strings}
    unknown = [
        pattern
        for row in VOID
        for pattern in f"{row.names} {row.but}".split()
        if not any(name == pattern or (pattern.endswith("*") and name.startswith(pattern[:-1])) for name in names)
    ]
    assert unknown == []


def test_every_flag_of_megatron_is_classified(parser):
    """A flag that Megatron adds fails this until it has a row in ``flags/void.py``, or acts by itself."""
    ours = [
        group for group in parser._action_groups if group.title.startswith(("megatron_cod", "when something", "opt"))
    ]
    own = {action.dest for group in ours for action in group._group_actions}
    known = {action.dest for action in parser._actions if action.option_strings} - own
    unknown = {name for name in known if not any(row.has(name) for row in VOID)} - ACT
    assert unknown == set()
    assert known >= ACT


def test_rejects_missing_mask():
    with pytest.raises(UserError, match=re.escape("--unset no-create-attention-mask-in-dataloader")):
        read_launch([*SMALL, "--reset-attention-mask"], 1)
    read_launch([*SMALL, "--reset-attention-mask", "--unset", "no-create-attention-mask-in-dataloader"], 1)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--save-interval", "4"], "--save-interval does nothing without --save"),
        (["--moe-shared-expert-gate"], "--moe-shared-expert-gate does nothing without --num-experts"),
        (["--mup-output-mult", "2"], "--mup-output-mult does nothing without --use-mup"),
        (["--wandb-entity", "x"], "--wandb-entity does nothing without --wandb-project"),
        (["--q-lora-rank", "8"], "--q-lora-rank does nothing without --multi-latent-attention"),
        (["--no-load-optim"], "--no-load-optim does nothing without --load"),
        (
            ["--recompute-method", "uniform", "--recompute-num-layers", "1"],
            "--recompute-method, --recompute-num-layers do nothing without --recompute-granularity full",
        ),
        (["--attention-backend", "flash"], "--attention-backend does nothing over the torch backend's attention"),
        (["--attention-backend", "fused"], "--attention-backend does nothing over the torch backend's attention"),
        (["--manual-gc-interval", "4"], "--manual-gc-interval does nothing without --manual-gc"),
        (["--ckpt-convert-save", "x"], "--ckpt-convert-save does nothing without --ckpt-convert-format"),
        (["--merge-file", "x"], "--merge-file does nothing with this --tokenizer-type"),
        (["--vocab-file", "x"], "--vocab-file does nothing with this --tokenizer-type"),
        (["--tiktoken-pattern", "v1"], "--tiktoken-pattern does nothing without --tokenizer-type TikTokenizer"),
        (["--nvtx-ranges"], "--nvtx-ranges does nothing without --profile"),
        (["--max-seqlen-per-dp-cp-rank", "8"], "-rank does nothing without --hybrid-context-parallel"),
        (["--non-persistent-save-interval", "2"], "does nothing without --non-persistent-ckpt-type"),
        (["--ckpt-fully-parallel-save-process-group", "ep_dp"], "process-group does nothing without --save"),
        (["--eval-iters", "0", "--eval-interval", "7"], "--eval-interval does nothing under --eval-iters 0"),
        (["--make-vocab-size-divisible-by", "8"], "-divisible-by does nothing beside --padded-vocab-size"),
    ],
)
def test_warns_of_flags_that_do_nothing(flags, line):
    assert any(line in note for note in read_launch([*SMALL, *flags], 1).notes)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--sharp-enabled-group", "dp"], "--sharp-enabled-group does nothing without --use-sharp"),
        (["--main-grads-dtype", "bf16"], "--main-grads-dtype does nothing without --use-precision-aware-optimizer"),
        (["--apply-residual-connection-post-layernorm"], "post-layernorm does nothing in Megatron-Core"),
    ],
)
def test_rejects_flags_whose_run_would_be_another(flags, line):
    with pytest.raises(UserError, match=line):
        read_launch([*SMALL, *flags], 1)


def test_no_warning_for_flags_that_act():
    assert read_launch(SMALL, 1).notes == ()


def test_no_warning_for_what_the_command_line_overrules():
    """The recipe has an interval, a warm-up and a base of rotations, each with its condition."""
    flags = ["--eval-iters", "0", "--position-embedding-type", "learned_absolute", "--lr-decay-style", "constant"]
    assert read_launch([*SMALL, *flags], 1).notes == ()


def test_warns_of_flags_of_a_recipe_that_do_nothing_in_it(tmp_path):
    recipe = [word for word in SMALL if word not in DEBUG]
    (tmp_path / "debug.yaml").write_text((ROOT / "recipes" / "debug.yaml").read_text())
    (tmp_path / "own.yaml").write_text("base: debug.yaml\nmanual-gc-interval: 4\neval-interval: 3\neval-iters: 0\n")
    notes = read_launch(["--recipe", str(tmp_path / "own.yaml"), "--mock-data", *recipe], 1).notes
    assert notes == ("WARNING: --manual-gc-interval does nothing without --manual-gc",)


@pytest.mark.parametrize("recipe", sorted(path.name for path in (ROOT / "recipes").glob("*.yaml")))
def test_no_flag_of_a_recipe_of_the_package_does_nothing(recipe):
    flags = ["--recipe", str(ROOT / "recipes" / recipe)]
    program = task() if recipe.startswith("sft") else TASK
    raw = resolve_command_line(flags, program)[0]
    raw.save = "runs/x"
    lines = check_void(raw, build_parser(program)._actions, True, lambda: given_by(flags, program))
    assert lines == []


def test_documentation_counts_the_rows():
    assert f"{len(VOID)} rows of conditions" in (ROOT / "docs" / "correctness.md").read_text()
