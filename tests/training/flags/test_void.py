"""A flag that another flag makes void is refused or told; every flag of Megatron's is classified."""

import re

import pytest

from megatron_cod.errors import UserError
from megatron_cod.rehearsal.launch import read_launch
from megatron_cod.training.flags.parser import build_parser
from megatron_cod.training.flags.void import VOID, check_void
from megatron_cod.training.pretraining import TASK
from tests.rehearsal.jobs import SMALL
from tests.training.flags.flags_that_act import ACT


@pytest.fixture(scope="module")
def parser():
    return build_parser(TASK)


def _value(action):
    """Another value than the default."""
    if action.choices:
        return next(one for one in action.choices if one != action.default)
    kind = action.type
    number = (action.default or 0) + 3 if isinstance(action.default, int | float | None) else 3
    return {int: int(number), float: float(number)}.get(kind, "x")


@pytest.mark.parametrize("row", VOID, ids=[f"{row.names[:30]} {row.why[:30]}" for row in VOID])
def test_every_row_warns_or_is_refused(row, parser):
    found = [one for one in parser._actions if one.option_strings and row.has(one.dest)]
    action = next(one for one in found if one.nargs != 0 or one.const is not None)
    args = parser.parse_args([])
    for name, value in (
        ("optimizer", "sgd" if row.names == "adam_*" else "adam"),
        ("lr_decay_style", "constant" if "constant" in row.why else "cosine"),
        ("position_embedding_type", "learned_absolute" if "rotary_base" in row.names else "rope"),
        ("eval_iters", 0),
        ("moe_router_load_balancing_type", ["none"] if "none" in row.why else ["aux_loss"]),
        ("num_experts", 4 if row.names.startswith("moe_aux") or "router" in row.names else None),
        ("transformer_impl", "local" if "torch backend" in row.why else "transformer_engine"),
        ("create_attention_mask_in_dataloader", "Transformer Engine" in row.why),
    ):
        setattr(args, name, value)
    if action.dest != "moe_router_load_balancing_type":
        setattr(args, action.dest, action.const if action.nargs == 0 else _value(action))
    assert not row.acts(args)
    try:
        lines = check_void(args, parser._actions, trains=True)
    except UserError as error:
        assert row.why in str(error)
    else:
        assert not row.refused and any(row.why in line for line in lines)


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
    ],
)
def test_warns_of_flags_that_do_nothing(flags, line):
    assert any(line in note for note in read_launch([*SMALL, *flags], 1).notes)


def test_no_warning_for_flags_that_act():
    assert read_launch(SMALL, 1).notes == ()
