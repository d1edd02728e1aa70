"""Numbers out of range: one line that names the flag, from recipes and command lines; nothing senseless is accepted."""

import math
import random
import re

import pytest

from megatron_cod.errors import UserError
from megatron_cod.rehearsal.launch import read_launch
from megatron_cod.schemes.options import may_be_negative
from megatron_cod.schemes.table import SCHEMES
from megatron_cod.training.flags.parser import build_parser
from megatron_cod.training.flags.ranges import RANGES, check_ranges, flag_of, range_of
from megatron_cod.training.pretraining import TASK
from tests.conftest import ROOT
from tests.rehearsal.jobs import SMALL

OUT_OF_RANGE = {
    "--norm-epsilon nan": "--norm-epsilon nan must be a finite number",
    "--norm-epsilon=-1e-5": "--norm-epsilon -1e-05 must be above 0",
    "--attention-dropout -1": "--attention-dropout -1.0 must be at least 0 and below 1",
    "--hidden-dropout 1": "--hidden-dropout 1.0 must be at least 0 and below 1",
    "--init-method-std -1": "--init-method-std -1.0 must be at least 0",
    "--adam-beta2 1e9": "--adam-beta2 1000000000.0 must be at least 0 and below 1",
    "--adam-beta2 nan": "--adam-beta2 nan must be a finite number",
    "--group-query-attention --num-query-groups 3": "--num-query-groups 3 does not divide --num-attention-heads 4",
    "--split abc": "--split abc must be up to three shares",
    "--split 0,0,0": "--split 0,0,0 must be up to three shares",
    "--split 1,2,3,4": "--split 1,2,3,4 must be up to three shares",
    "--split nan": "--split nan must be up to three shares",
    "--eval-iters -1": "--eval-iters -1 must be at least 0",
    "--eval-interval 0": "--eval-interval 0 must be at least 1",
    "--kv-channels 0": "--kv-channels 0 must be at least 1",
    "--num-workers -1": "--num-workers -1 must be at least 0",
    "--use-rope-scaling --rope-scaling-factor inf": "--rope-scaling-factor inf must be a finite number",
    "--rotary-percent 0": "--rotary-percent 0.0 must be above 0 and at most 1",
    "--weight-decay inf": "--weight-decay inf must be a finite number",
    "--lr nan": "--lr nan must be a finite number",
    "--lr=--": "--lr takes a value, not '--'",
    "--seed 0": "--seed 0 must be at least 1",
    "--lr 1e30": "--lr 1e+30 must be at least 0 and at most 100",
    "--min-lr 1e30": "--min-lr 1e+30 must be at least 0 and at most 100",
    "--init-method-std 1e30": "--init-method-std 1e+30 must be at least 0 and at most 100",
    "--weight-decay 1e30": "--weight-decay 1e+30 must be at least 0 and at most 10000",
    "--num-workers 1000000": "--num-workers 1000000 must be at least 0 and at most 1024",
    "--use-rope-scaling --rope-scaling-factor 0.0001": "--rope-scaling-factor 0.0001 must be at least 1",
    "--norm-epsilon 2": "--norm-epsilon 2.0 must be above 0 and at most 1",
    "--adam-eps 1e30": "--adam-eps 1e+30 must be above 0 and at most 1",
    "--clip-grad 1e30": "--clip-grad 1e+30 must be at least 0 and at most 1e+12",
    "--num-layers 1000000000": "--num-layers 1000000000 must be at least 1 and at most 100000",
    "--hidden-size 1000000000000": "--hidden-size 1000000000000 must be at least 1 and at most 1e+08",
    "--seed 4294967296": "--seed 4294967296 must be at least 1 and at most 2e+09",
    "--distributed-timeout-minutes 1000000000": "--distributed-timeout-minutes 1000000000 must be at least 1 and at most",
    f"--seed 1{'0' * 400}": "--seed 10000000000000000000... must be at least 1",
    "--moe-layer-freq 0": "--moe-layer-freq 0 must be at least 1",
    "--num-experts 2 --moe-layer-freq [0,7]": "--moe-layer-freq 7 must be at least 0 and at most 1",
    "--attention-backend fast": "there are flash, fused, unfused, local, auto",
    "--exit-signal SIGNOTHING": "argument --exit-signal: invalid value: 'SIGNOTHING'",
    "--moe-layer-freq [1]*": "argument --moe-layer-freq: invalid value",
    "--cuda-graph-modules what": "argument --cuda-graph-modules: invalid value",
}


@pytest.fixture(scope="module")
def parser():
    return build_parser(TASK)


def refusal(words: list[str]) -> str | None:
    """What the start says; a fault is raised."""
    try:
        read_launch(words, 1)
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("flags", OUT_OF_RANGE)
def test_rejects_numbers_out_of_range(flags):
    found = refusal([*SMALL, *flags.split()])
    assert found is not None and OUT_OF_RANGE[flags] in found and "\n" not in found


def test_rejects_them_in_recipes(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text((ROOT / "recipes" / "debug.yaml").read_text() + "\nadam-eps: .nan\nmock-data: true\n")
    assert refusal(["--recipe", str(recipe)]) == "--adam-eps nan must be a finite number"


def test_every_row_is_an_argument(parser):
    assert RANGES.keys() <= {action.dest for action in parser._actions}


def test_every_default_is_within_its_range(parser):
    check_ranges(parser.parse_args([]), [])
    for action in parser._actions:
        if isinstance(action.default, int | float) and not isinstance(action.default, bool):
            assert range_of(action.dest).holds(action.default), action.dest


def test_an_option_of_a_scheme_may_be_negative(parser):
    words = ["--norm-scheme", "layer_rope", "--layer-rope-scale-exponent", "-0.3"]
    check_ranges(parser.parse_args(words), parser._actions)
    with pytest.raises(UserError, match="--layer-rope-scale-exponent inf must be a finite number"):
        check_ranges(parser.parse_args([*words[:3], "inf"]), parser._actions)


def _numbers(parser, kind):
    return [one for one in parser._actions if one.type is kind and not one.choices]


def test_rejects_nan_and_infinity(parser):
    floats = _numbers(parser, float)
    assert len(floats) > 60
    args = parser.parse_args([])
    for action in floats:
        for value in (math.nan, math.inf, -math.inf):
            setattr(args, action.dest, [value] if action.nargs == "+" else value)
            with pytest.raises(UserError, match=re.escape(flag_of(action))):
                check_ranges(args, parser._actions)
        setattr(args, action.dest, action.default)


@pytest.mark.parametrize("text", ["", " "])
def test_rejects_empty_texts(text, parser):
    """As of a shell's variable that is not set: --save "$SAVE" would save nothing."""
    args = parser.parse_args([])
    texts = [one for one in parser._actions if one.option_strings and one.nargs != 0 and one.type in (None, str)]
    assert len(texts) > 100
    for action in texts:
        if action.default == text or action.choices:
            continue
        setattr(args, action.dest, [text] if action.nargs in ("+", "*") else text)
        with pytest.raises(UserError, match=re.escape(flag_of(action)) + " is empty"):
            check_ranges(args, parser._actions)
        setattr(args, action.dest, action.default)


LARGER = {"loss_scale", "initial_loss_scale", "min_loss_scale"}
"""A power of two up to the largest float: a scale is lowered until gradients are finite."""


@pytest.mark.parametrize("value", [1e30, 10**13, 10**400])
def test_rejects_numbers_that_nobody_means(value, parser):
    args = parser.parse_args([])
    for action in [*_numbers(parser, int), *_numbers(parser, float)]:
        setattr(args, action.dest, [value] if action.nargs == "+" else value)
        if action.dest in LARGER and value < 1e38:
            check_ranges(args, parser._actions)
        else:
            with pytest.raises(UserError, match=re.escape(flag_of(action))):
                check_ranges(args, parser._actions)
        setattr(args, action.dest, action.default)


def test_a_negative_count_is_a_row_of_its_own(parser):
    """What may be below 0 is written down: a flag that Megatron adds may not until somebody says so."""
    args = parser.parse_args([])
    taken = set()
    for action in [*_numbers(parser, int), *_numbers(parser, float)]:
        setattr(args, action.dest, -1)
        try:
            check_ranges(args, parser._actions)
        except UserError:
            pass
        else:
            taken.add(action.dest)
        setattr(args, action.dest, action.default)
    of_schemes = {name for row in SCHEMES.values() for name in may_be_negative(row.options)}
    assert taken == {name for name, one in RANGES.items() if one.low < 0} - {"window_size"} | of_schemes


SENSELESS = ("nan", "inf", "-inf", "-7", "-0.5")
WORDS = ("", "abc", "[1]*", "1,2", "1e400", "0x10", "--", "None", "true", "\u0663")


def _fuzzed(parser, draw: random.Random) -> tuple[list[str], bool]:
    """Two flags with values drawn, and whether one of them is senseless."""
    words, senseless = [], False
    for action in draw.sample(_numbers(parser, float) + _numbers(parser, int), 2):
        kind = draw.choice(("senseless", "word", "number"))
        value = draw.choice(SENSELESS if kind == "senseless" else WORDS if kind == "word" else ("0", "1", "3", "64"))
        words.append(f"{flag_of(action)}={value}")
        senseless |= kind == "senseless" and range_of(action.dest).low >= 0
    return words, senseless


def test_fuzzed_starts_end_in_one_line_or_are_accepted(parser):
    draw = random.Random(20)
    accepted = 0
    for _ in range(150):
        words, senseless = _fuzzed(parser, draw)
        found = refusal([*SMALL, *words])
        assert found is None or "\n" not in found, words
        assert not (senseless and found is None), words
        accepted += found is None
    assert accepted > 5
