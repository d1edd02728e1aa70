"""The fine-tuning entry: one command that starts and resumes exactly, the same losses at every layout, what it says."""

import json
import shutil

import pytest
import yaml

from megatron_cod.analysis.metrics import TRAIN_LOSS, VALID_LOSS, read_metrics
from tests.conftest import ROOT, TINY
from tests.distributed.launch import Ended, run_training_ranks
from tests.distributed.runs import losses, refuse

PP2 = ["--pipeline-model-parallel-size", "2"]
CP2 = ["--context-parallel-size", "2"]


def succeed(world: int, flags: list[str]) -> list[Ended]:
    ended = run_training_ranks(world, flags, entry="sft")
    assert [rank.code for rank in ended] == [0] * world, "\n----\n".join(rank.output[-2500:] for rank in ended)
    return ended


def saved(folder, every: int = 5) -> list[str]:
    return ["--save", str(folder), "--save-interval", str(every)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, toy):
    """The whole run over two stages, and what it said."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, succeed(
        2, [*toy, *PP2, *saved(folder), "--depth-monitor-interval", "5", "--keep-last-checkpoints", "1"]
    )


@pytest.mark.slow
def test_logs_the_data(whole):
    folder, ended = whole
    output = ended[0].output
    for text in (
        "training data: 40 conversations, ",
        "tokens, of which ",
        "the first conversation, what is trained in [[ ]]: ",
        "packed into ",
        "% tokens; an epoch is ",
        "--train-epochs 3: ",
        "each validation sees all of its ",
        "the weights of ",
        "pipeline stage 1, virtual stage 0: layers 3..4, norm factors 0.5774..0.5000",
    ):
        assert text in output, text
    steps = int(output.split("--train-epochs 3: ")[1].split(" ")[0])
    assert f"step {steps}/{steps} | loss" in ended[0].output and "tokens/s (" in ended[0].output
    train, valid = losses(folder)
    assert list(train) == list(range(1, steps + 1)) and train[steps] < train[1] - 0.1
    assert set(valid) == {*range(4, steps + 1, 4), steps}
    metrics = read_metrics(folder / "metrics.jsonl")
    assert "depth/variance after/layer 004" in metrics.scalars and list(metrics.stream_variance()) == [1, 2, 3, 4]
    assert len(list(folder.glob("iter_*"))) == 1
    resolved = yaml.safe_load((folder / "resolved_args.yaml").read_text())
    assert resolved["calculate-per-token-loss"] is True and resolved["train-epochs"] == 3


def test_the_same_command_resumes_to_the_bit(whole, toy, tmp_path):
    """Stopped within the second epoch; with the distributed optimizer below."""
    flags = [*toy, *PP2, *saved(tmp_path)]
    succeed(2, [*flags, "--exit-interval", "5"])
    assert max(losses(tmp_path)[0]) == 5
    ended = succeed(2, flags)
    assert f"resuming from {tmp_path / 'iter_0000005'}" in ended[0].output
    assert losses(tmp_path) == losses(whole[0])


@pytest.mark.slow
def test_resumes_with_the_distributed_optimizer(toy, tmp_path):
    flags = [*toy, "--use-distributed-optimizer", "--finetune"]
    succeed(2, [*flags, *saved(tmp_path / "whole")])
    succeed(2, [*flags, *saved(tmp_path / "parts"), "--exit-interval", "5"])
    succeed(2, [*flags, *saved(tmp_path / "parts")])
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


@pytest.mark.slow
def test_detects_changed_seed(whole, toy, tmp_path):
    """The comparison above can fail: another order of rows gives other losses."""
    succeed(2, [*toy, *PP2, *saved(tmp_path), "--seed", "7"])
    assert losses(tmp_path)[0] != losses(whole[0])[0]


LAYOUTS = {
    "one": (1, []),
    "dp2": (2, []),
    "tp2 sp": (2, ["--tensor-model-parallel-size", "2", "--sequence-parallel"]),
    "pp2 vp2": (2, [*PP2, "--num-virtual-stages-per-pipeline-rank", "2"]),
}


@pytest.mark.parametrize(("world", "flags"), LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.slow
def test_the_same_losses_at_every_layout(whole, toy, tmp_path, world, flags):
    succeed(world, [*toy, *flags, "--metrics-file", str(tmp_path / "metrics.jsonl")])
    for ours, theirs in zip(losses(tmp_path), losses(whole[0]), strict=True):
        assert ours.keys() == theirs.keys()
        assert max(abs(ours[step] - theirs[step]) for step in ours) <= 1e-5


@pytest.mark.slow
def test_trains_single_rows_over_context_parallelism(toy, tmp_path):
    """The ranks of a row hold unequal numbers of answer tokens."""
    found = []
    for world, layout in ((1, []), (2, CP2)):
        file = tmp_path / str(world) / "metrics.jsonl"
        flags = [*toy, "--no-sft-packing", "--train-epochs", "1", *layout, "--metrics-file", str(file)]
        succeed(world, flags)
        found.append(losses(file.parent))
    for ours, theirs in zip(*found, strict=True):
        assert ours.keys() == theirs.keys() and len(ours) >= 2
        assert max(abs(ours[step] - theirs[step]) for step in ours) <= 1e-5


@pytest.mark.parametrize("scheme", ["lns", "pre_ln"])
@pytest.mark.slow
def test_packed_or_not_the_epochs_mean_is_the_same_at_first(base, toy, tmp_path, scheme):
    """With a learning rate of 0 the mean over all answer tokens of an epoch does not depend on the rows."""
    flags = [*toy, "--load", str(base / scheme), "--norm-scheme", scheme]
    flags += ["--lr", "0", "--min-lr", "0", "--train-epochs", "1"]
    found = []
    for name, rows in {"packed": [], "single": ["--no-sft-packing"]}.items():
        (tmp_path / name).mkdir()
        file = ["--metrics-file", str(tmp_path / name / "metrics.jsonl"), "--global-batch-size", "40"]
        ended = succeed(1, [*flags, *rows, *file])
        assert "--train-epochs 1: 1 steps" in ended[0].output
        found.append(read_metrics(tmp_path / name / "metrics.jsonl").scalars)
    for name in (TRAIN_LOSS, VALID_LOSS):
        assert abs(found[0][name][1] - found[1][name][1]) <= 2e-6


def test_rejects_another_scheme(base, toy):
    refuse(
        1,
        [*toy, "--load", str(base / "pre_ln")],
        r"was trained with --norm-scheme pre_ln, this run has lns",
        entry="sft",
    )


def test_rejects_resume_with_other_data(whole, chats, toy, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    before = sorted((tmp_path / "run").rglob("iter_*/*"))
    flags = [*toy, *PP2, *saved(tmp_path / "run"), "--sft-data-path", str(chats / "valid.jsonl")]
    refuse(
        2, flags, r"was trained on other conversations, or with another template, --seq-length or --seed", entry="sft"
    )
    assert sorted((tmp_path / "run").rglob("iter_*/*")) == before


@pytest.mark.slow
def test_load_and_save_in_one_place_as_in_the_launch_templates(base, toy, tmp_path):
    """``--load SAVE --save SAVE`` as examples/ has it; the weights to begin with are named apart."""
    flags = [*toy, "--load", str(tmp_path), *saved(tmp_path, 2)]
    refuse(1, flags, r"holds no finished checkpoint; --pretrained-checkpoint names the one to begin with", entry="sft")
    flags += ["--pretrained-checkpoint", str(base / "lns")]
    assert f"the weights of {base / 'lns'}" in succeed(1, [*flags, "--exit-interval", "2"])[0].output
    ended = succeed(1, [*flags, "--exit-interval", "4"])
    assert f"resuming from {tmp_path / 'iter_0000002'}" in ended[0].output
    assert list(losses(tmp_path)[0]) == [1, 2, 3, 4]


def test_dry_run_trains_nothing(toy, tmp_path):
    ended = run_training_ranks(1, [*toy, "--dry-run", *saved(tmp_path / "s")], entry="sft")[0]
    assert ended.code == 0
    assert "packed into" in ended.output and "norm-scheme: lns" in ended.output and "sft-data-path" in ended.output
    assert not list((tmp_path / "s").glob("iter*"))


def test_reports_held_out_share_and_skipped_lines(chats, toy, tmp_path):
    broken = tmp_path / "broken.jsonl"
    long = json.dumps({"prompt": "b", "completion": "c" * 209})
    broken.write_text((chats / "train.jsonl").read_text() + '{"prompt": "a"\n' + long)
    flags = [flag for flag in toy if "valid" not in flag]
    flags += ["--sft-data-path", str(broken), "--sft-valid-share", "0.2"]
    flags += ["--sft-skip-bad-lines", "--sft-too-long", "drop"]
    output = run_training_ranks(1, [*flags, "--dry-run"], entry="sft")[0].output
    assert "training data: 40 conversations" in output and "1 dropped as too long; 1 bad lines skipped" in output
    assert "skipped: " in output and "broken.jsonl:41: not JSON" in output and "held out to validate on: " in output


BAD_FLAGS = {
    "no data": (["--unset-data"], r"no data: give --sft-data-path"),
    "pretraining's data": (["--train-data-path", "x"], r"--train-data-path is pretraining's; give --sft-data-path"),
    "missing file": (["--sft-data-path", "nowhere.jsonl"], r"nowhere.jsonl does not exist"),
    "no checkpoint there": (
        ["--load", "nowhere"],
        r"nothing to fine-tune: --load nowhere holds no finished checkpoint",
    ),
    "too long": (
        ["--seq-length", "16"],
        r"--seq-length 16, the longest .*\d+ .*train.jsonl:\d+",
    ),
    "two validations": (["--sft-valid-share", "0.5"], r"--sft-valid-data-path and --sft-valid-share both name"),
    "a share of nothing": (["--sft-valid-share", "1.5"], r"'1.5' is not between 0 and 1"),
    "rows over the pipeline": (
        [*PP2, "--micro-batch-size", "2"],
        r"packing does not support --pipeline-model-parallel-size > 1 with --micro-batch-size > 1",
    ),
    "rows over context parallelism": (
        CP2,
        r"packing .*--context-parallel-size > 1; .*--no-sft-packing",
    ),
    "unfused attention": (["--attention-backend", "unfused"], r"packing does not support --attention-backend unfused"),
    "prediction of several tokens": (["--mtp-num-layers", "1"], r"packing does not support --mtp-num-layers"),
    "Megatron's own": (["--sft"], r"fine-tuning does not support --sft \(Megatron's own"),
    "warm-up of residuals": (["--residual-warmup-steps", "9"], r"--residual-warmup-steps \(it would start again"),
    "unknown template": (
        ["--chat-template", "chatlm"],
        r"--chat-template chatlm is no file, and none of alpaca, plain, raw",
    ),
    "tokenizer": (["--tokenizer-type", "NullTokenizer", "--vocab-size", "128"], r"NullTokenizer reads no text"),
    "a vocabulary too small": (
        ["--padded-vocab-size", "200"],
        r"257 tokens, .* vocabulary",
    ),
    "epochs": (["--train-epochs", "0"], r"--train-epochs: '0' is not a number of at least 1"),
    "epochs and samples": (
        ["--train-epochs", "1", "--train-samples", "9"],
        r"--train-epochs and --train-samples both set",
    ),
}


@pytest.mark.parametrize(("flags", "pattern"), BAD_FLAGS.values(), ids=BAD_FLAGS)
@pytest.mark.slow_except(
    "no data", "missing file", "too long", "rows over the pipeline", "unknown template", "epochs and samples"
)
def test_rejects_wrong_flags(toy, flags, pattern):
    if flags == ["--unset-data"]:
        place = toy.index("--sft-data-path")
        toy, flags = toy[:place] + toy[place + 2 :], []
    refuse(2, [*toy, *flags], pattern, entry="sft")


BAD_LINES = {
    "broken JSON": ("{", r"bad.jsonl:1: not JSON"),
    "missing key": ('{"prompt": "a"}', r"bad.jsonl:1: none of the known layouts"),
    "unknown role": ('{"messages": [{"role": "bot", "content": "a"}]}', r"bad.jsonl:1: message 1 has the role 'bot'"),
    "empty answer": ('{"prompt": "a", "completion": ""}', r"bad.jsonl:1: an answer is empty"),
    "user last": ('{"messages": [{"role": "user", "content": "a"}]}', r"bad.jsonl:1: the last message is the user's"),
}


@pytest.mark.parametrize(("line", "pattern"), BAD_LINES.values(), ids=BAD_LINES)
def test_rejects_bad_lines(toy, tmp_path, line, pattern):
    (tmp_path / "bad.jsonl").write_text(line + "\n")
    refuse(2, [*toy, "--sft-data-path", str(tmp_path / "bad.jsonl")], pattern, entry="sft")


def test_rejects_data_that_is_all_too_long(toy):
    flags = ["--seq-length", "8", "--sft-too-long", "drop"]
    refuse(1, [*toy, *flags], r"\(40 too long, 0 bad\)", entry="sft")


@pytest.mark.slow
def test_the_commonsense_recipe_trains_on_its_layout(base, tmp_path):
    """At toy size, on bytes; the file is one JSON list with the keys that Commonsense170K has."""
    record = {"instruction": "Is it so?", "input": "", "output": "the correct answer is true", "answer": "true"}
    (tmp_path / "list.json").write_text(json.dumps([record | {"instruction": f"Is {n} even?"} for n in range(40)]))
    model = TINY[2:8]
    flags = ["--recipe", str(ROOT / "recipes" / "sft_commonsense.yaml"), *model, "--num-attention-heads", "4"]
    flags += ["--unset", "bf16", "lr-warmup-iters", "--tokenizer-type", "NullTokenizer", "--vocab-size", "257"]
    flags += ["--padded-vocab-size", "264", "--sft-data-path", str(tmp_path / "list.json"), "--load", str(base / "lns")]
    ended = succeed(2, [*flags, "--micro-batch-size", "8", "--sft-valid-share", "0.2", "--log-interval", "1"])
    assert (
        "one conversation a row" in ended[0].output
        and "### Response:\\n[[the correct answer is true<eod>]]" in ended[0].output
    )
    assert "step 1/" in ended[0].output
