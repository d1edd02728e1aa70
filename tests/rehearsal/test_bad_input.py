"""What the launch would refuse is refused: one line that names the flag, exit code 2."""

import re
import subprocess
import sys

import pytest

from megatron_cod.estimate.ranks import place_of, stage_rank
from megatron_cod.rehearsal.launch import read_launch
from tests.conftest import ROOT
from tests.rehearsal.jobs import SMALL, layout

TOOL = [sys.executable, str(ROOT / "tools" / "rehearse.py")]
LAYOUT = "--pipeline-model-parallel-layout"

REFUSED = {
    "world": (3, [*SMALL, *layout(pp=2)], "3 processes were started, but the layout takes a multiple of 2"),
    "no world": (0, SMALL, "--world-size 0 must be at least 1"),
    "layers over stages": (3, [*SMALL, *layout(pp=3)], "--num-layers 8 does not divide over"),
    "letters": (2, [*SMALL, *layout(pp=2), LAYOUT, "Etttt|ttqtL"], "unknown letter 'q'"),
    "sum of layers": (2, [*SMALL, *layout(pp=2), LAYOUT, "Ettt|tttL"], "holds 6 layers, but --num-layers is 8"),
    "stages of the layout": (4, [*SMALL, *layout(pp=4), LAYOUT, "Etttt|ttttL"], "has 2 stages, not a multiple of"),
    "batch": (
        2,
        [*SMALL, "--global-batch-size", "6"],
        "--global-batch-size 6 is not a multiple of --micro-batch-size 2",
    ),
    "heads": (8, [*SMALL, *layout(tp=8)], "--num-attention-heads 4 does not divide over"),
    "feed-forward": (
        2,
        [*SMALL, *layout(tp=2), "--ffn-hidden-size", "65"],
        "--ffn-hidden-size 65 does not divide over",
    ),
    "vocabulary": (
        2,
        [*SMALL, *layout(tp=2), "--padded-vocab-size", "263"],
        "the padded vocabulary 263 does not divide",
    ),
    "sequence": (2, [*SMALL, *layout(tp=2), "--seq-length", "31"], "--seq-length 31 does not divide over"),
    "no tensor parallelism": (2, [*SMALL, "--tensor-model-parallel-size", "0"], "must be at least 1"),
    "no layers": (2, [*SMALL, "--num-layers", "0"], "--num-layers 0 must be at least 1"),
    "context parallelism": (
        2,
        [*SMALL, "--context-parallel-size", "2", "--attention-dropout", "0.1"],
        "does not support --attention-dropout > 0 with --context-parallel-size > 1",
    ),
    "backend": (1, [*SMALL, "--transformer-impl", "transformer_engine"], "Transformer Engine is not installed"),
    "checkpoint": (1, [*SMALL, "--load", "recipes", "--ckpt-step", "3"], "recipes"),
    "experts": (
        2,
        [*SMALL, "--num-experts", "3", "--expert-model-parallel-size", "2", "--moe-token-dispatcher-type", "allgather"],
        "expert",
    ),
    "too few micro-batches for virtual stages": (
        4,
        [*SMALL, *layout(pp=4, vp=2)],
        "virtual stages take 2 micro-batches a step in groups of 4",
    ),
    "micro-batches left over": (
        4,
        [*SMALL, *layout(pp=4, vp=2), "--global-batch-size", "12"],
        "none or at least 4 left over, not 2",
    ),
    "warm-up": (1, [*SMALL, "--unset", "lr-warmup-fraction", "--lr-warmup-iters", "300"], "--lr-warmup-iters 300"),
    "recipe": (1, ["--recipe", "recipes/llama_8b.yaml"], "recipe recipes/llama_8b.yaml does not exist"),
    "flag": (1, [*SMALL, "--no-such-flag"], "unrecognized arguments: --no-such-flag"),
    "scheme": (1, [*SMALL, "--norm-scheme", "lsn"], "no norm scheme 'lsn'"),
    "megatron's own": (1, [*SMALL, "--tp-comm-overlap"], "sequence parallelism is enabled"),
    "chunks": (
        2,
        [*SMALL, "--context-parallel-size", "2", "--seq-length", "30"],
        "--seq-length 30 must be a multiple of 4",
    ),
    "data": (
        1,
        [flag for flag in SMALL if flag != "--mock-data"] + ["--train-data-path", "nowhere", "--eval-iters", "0"],
        "nowhere",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_one_line(name):
    world, flags, text = REFUSED[name]
    with pytest.raises(ValueError, match=re.escape(text)) as error:
        read_launch(flags, world)
    assert "\n" not in str(error.value)


def test_the_control_is_accepted():
    assert read_launch([*SMALL, *layout(pp=2)], 2).args.data_parallel_size == 1


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--world-size", "2", *SMALL, *layout(pp=2), LAYOUT, "Ex|tL"], "unknown letter 'x'"),
        (["--world-size", "2", "--run-rank", "2", *SMALL], "rank 2 is out of range: --world-size 2 has ranks 0 to 1"),
        (["--world-size", "2", "--run-rank", "-1", *SMALL], "rank -1 is out of range"),
        (["--world-size", "two", *SMALL], "'two' is not a number of at least 1"),
        (["--world-size", "2", "--tokens", "20X", *SMALL], "'20X' is not a number of tokens"),
        (SMALL, "--world-size N is needed"),
        (["--world-size", "2", "--json", "/no/where/plan.json", *SMALL], "its folder does not exist"),
    ],
    ids=["layout", "rank", "negative rank", "world", "tokens", "no world", "json"],
)
@pytest.mark.slow_except("layout", "json")
def test_the_tool_ends_with_one_line_and_code_2(flags, text):
    ended = subprocess.run([*TOOL, *flags], capture_output=True, text=True, cwd=ROOT, check=False)
    assert ended.returncode == 2
    assert ended.stdout == ""
    lines = ended.stderr.splitlines()
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith("error: ") and text in lines[0]


def test_no_flag_of_the_tool_is_one_of_the_launch():
    """Or the tool would swallow it."""
    from megatron_cod.cli import rehearse
    from megatron_cod.training.flags.parser import build_parser

    ours = {option for action in rehearse.build_parser()._actions for option in action.option_strings}
    theirs = {option for action in build_parser()._actions for option in action.option_strings}
    assert ours & theirs == {"-h", "--help"}


@pytest.mark.parametrize("mapping", [[], ["--use-tp-pp-dp-mapping"]], ids=["default", "tp-pp-dp"])
def test_places_are_those_of_megatrons_rank_generator(mapping):
    from megatron.core.parallel_state import RankGenerator

    flags = [*SMALL, *layout(tp=2, pp=2), "--global-batch-size", "12", *mapping]
    args = read_launch(flags, 12).args
    order = "tp-cp-ep-pp-dp" if mapping else "tp-cp-ep-dp-pp"
    generator = RankGenerator(tp=2, ep=1, dp=3, pp=2, cp=1, order=order)
    for axis, name in (("tp", "tensor"), ("dp", "data"), ("pp", "pipeline")):
        for group in generator.get_ranks(axis):
            assert [getattr(place_of(rank, args, 12), name) for rank in group] == list(range(len(group)))
    assert [place_of(stage_rank(stage, args, 12), args, 12).pipeline for stage in (0, 1)] == [0, 1]


def test_leaves_no_directory_of_save(tmp_path):
    read_launch([*SMALL, "--save", str(tmp_path / "a" / "run"), "--save-interval", "2"], 1)
    assert not list(tmp_path.iterdir())
