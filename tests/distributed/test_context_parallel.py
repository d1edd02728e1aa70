"""Context parallelism in whole training runs: the losses, the figures and the checkpoints of one process."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from megatron_cod.analysis.metrics import TRAIN_LOSS, VALID_LOSS, read_metrics
from tests.distributed.launch import run_training_ranks
from tests.distributed.runs import at_step_4, losses, succeed
from tests.training.evaluation.datasets import EOD, sentences, write_dataset

CP2, CP4 = ["--context-parallel-size", "2"], ["--context-parallel-size", "4"]
MTP2 = ["--mtp-num-layers", "2"]
DOCUMENTS = [
    *("--reset-position-ids", "--reset-attention-mask", "--eod-mask-loss"),
    *("--unset", "no-create-attention-mask-in-dataloader"),
]
MOE = [
    *("--num-experts", "4", "--moe-router-topk", "2", "--moe-ffn-hidden-size", "48"),
    *("--moe-router-load-balancing-type", "aux_loss", "--moe-aux-loss-coeff", "0.05"),
    *("--moe-token-dispatcher-type", "alltoall"),
]
WATCHED = ["--depth-monitor-interval", "2"]
KINDS = {
    "dense": WATCHED,
    "gqa": ["--group-query-attention", "--num-query-groups", "2"],
    "documents apart": DOCUMENTS,
    "documents apart, per token": [*DOCUMENTS, "--calculate-per-token-loss"],
    "learned positions": ["--position-embedding-type", "learned_absolute"],
    "mtp": MTP2,
    "mtp, documents apart": [*MTP2, *DOCUMENTS],
    "mtp, per token": [*MTP2, *DOCUMENTS, "--calculate-per-token-loss"],
    "moe": MOE,
    "moe, z-loss": [*MOE, "--moe-z-loss-coeff", "0.01"],
    "pre_ln": ["--norm-scheme", "pre_ln"],
}
LAYOUTS = {
    "cp4": (4, CP4),
    "tp2 cp2 sp": (4, [*CP2, "--tensor-model-parallel-size", "2", "--sequence-parallel"]),
    "cp2 dp2": (4, [*CP2, "--use-distributed-optimizer", "--overlap-grad-reduce", "--overlap-param-gather"]),
    "cp2 fsdp2": (2, [*CP2, "--use-torch-fsdp2", "--no-gradient-accumulation-fusion", "--ckpt-format", "torch_dcp"]),
}


def train(folder: Path, world: int, flags: list[str]) -> dict[str, dict[int, float]]:
    """All metrics of a run."""
    succeed(world, [*flags, "--lr", "3e-3", "--metrics-file", str(folder / "metrics.jsonl")])
    return read_metrics(folder / "metrics.jsonl").scalars


def largest(found: dict[int, float], expected: dict[int, float]) -> float:
    """Relative where values are large."""
    assert found.keys() == expected.keys() and expected
    return max(abs(found[step] - value) / max(1.0, abs(value)) for step, value in expected.items())


def compared(found: dict[str, dict[int, float]], expected: dict[str, dict[int, float]]) -> dict[str, float]:
    """Largest differences of the losses, the gradient norm and what is measured by layer."""
    names = [
        name for name in expected if "loss" in name or name.startswith(("depth/", "stream")) or name == "grad-norm"
    ]
    assert {TRAIN_LOSS, VALID_LOSS, "grad-norm"} <= {*names}
    return {name: largest(found[name], expected[name]) for name in names}


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """Flags of data in which nearly every row of 32 tokens has an end of document, somewhere."""
    prefix = tmp_path_factory.mktemp("short") / "documents"
    write_dataset(prefix, [np.array([*text.encode()[: 9 + n % 30], EOD]) for n, text in enumerate(3 * sentences())])
    return ["--train-data-path", str(prefix), "--valid-data-path", str(prefix)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow_except("documents apart")
def test_a_run_is_that_of_one_process(tiny, short, tmp_path, kind):
    flags = [*tiny, *short, *KINDS[kind]]
    one, two = train(tmp_path / "one", 1, flags), train(tmp_path / "two", 2, [*flags, *CP2])
    differences = compared(two, one)
    if kind == "mtp, per token":  # what is logged of it is Megatron's, a mean over ranks; the gradients are right
        differences = {name: value for name, value in differences.items() if not name.startswith("mtp")}
    print(kind, differences)
    assert max(differences.values()) <= 1e-5, differences
    assert two["tokens seen"] == one["tokens seen"]


@pytest.fixture(scope="module")
def dense(tiny, tmp_path_factory):
    return train(tmp_path_factory.mktemp("one"), 1, [*tiny, *WATCHED])


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_losses_are_equal_at_other_layouts(tiny, dense, tmp_path, name):
    world, layout = LAYOUTS[name]
    differences = compared(train(tmp_path, world, [*tiny, *layout, *WATCHED]), dense)
    print(name, differences)
    assert max(differences.values()) <= 1e-5, differences


@pytest.mark.slow
def test_losses_of_bf16_are_equal(tiny, tmp_path):
    flags = [*tiny, "--bf16", "--group-query-attention", "--num-query-groups", "2"]
    one, two = train(tmp_path / "one", 1, flags), train(tmp_path / "two", 2, [*flags, *CP2])
    assert largest(two[TRAIN_LOSS], one[TRAIN_LOSS]) <= 2e-2
    assert abs(two[TRAIN_LOSS][1] - one[TRAIN_LOSS][1]) <= 1e-3


def unweighed_depths() -> None:
    from megatron.core.models.gpt.gpt_model import GPTModel

    from megatron_cod import model

    model.WeighedMTP = GPTModel


def gradient_norm_as_it_is() -> None:
    """The depth monitor forgets that a rank's loss is larger."""
    from megatron_cod.training.monitoring import depth_monitor

    depth_monitor.get_num_microbatches = lambda: 4


MUTANTS: dict[str, tuple[list[str], Callable[[], None], str]] = {
    "mtp": (MTP2, unweighed_depths, "mtp_1 loss"),
    "monitor": (WATCHED, gradient_norm_as_it_is, "depth/gradient norm/layer 001"),
}


@pytest.mark.parametrize("name", MUTANTS)
@pytest.mark.slow
def test_detects_mean_of_means(tiny, tmp_path, name):
    flags, mutant, metric = MUTANTS[name]
    flags = [*tiny, *flags]
    one = train(tmp_path / "one", 1, flags)
    wrong = [*flags, *CP2, "--lr", "3e-3", "--metrics-file", str(tmp_path / "metrics.jsonl")]
    assert run_training_ranks(2, wrong, before=mutant)[1].code == 0
    assert largest(read_metrics(tmp_path / "metrics.jsonl").scalars[metric], one[metric]) > 1e-4


OPTIMIZER = "--use-distributed-optimizer"


@pytest.fixture(scope="module", params=[[], [OPTIMIZER]], ids=["plain", "distributed"])
def saved(request, tmp_path_factory, tiny):
    """A whole run at CP 2, and its directory as it was after step 4."""
    whole = tmp_path_factory.mktemp("whole")
    flags = [*tiny, *request.param]
    succeed(2, [*flags, *CP2, "--save", str(whole), "--save-interval", "4"])
    return flags, whole, at_step_4(whole, tmp_path_factory.mktemp("stopped"))


def gone_on(saved, folder: Path, world: int, layout: list[str]):
    """Losses of steps 5 to 8, resumed from step 4, and those of the whole run."""
    flags, whole, stopped = saved
    shutil.copytree(stopped, folder, dirs_exist_ok=True)
    succeed(world, [*flags, *layout, "--load", str(folder), "--save", str(folder), "--save-interval", "4"])
    found, expected = losses(folder), losses(whole)
    return found, ({step: expected[0][step] for step in range(5, 9)}, {8: expected[1][8]})


@pytest.mark.slow
def test_stopping_changes_nothing_to_the_bit(saved, tmp_path):
    found, expected = gone_on(saved, tmp_path, 2, CP2)
    assert found == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "layout"), [(1, []), (4, CP4), (2, ["--pipeline-model-parallel-size", "2"])], ids=["cp1", "cp4", "pp2"]
)
def test_resuming_at_another_layout(saved, tmp_path, world, layout):
    found, expected = gone_on(saved, tmp_path, world, layout)
    assert max(largest(mine, theirs) for mine, theirs in zip(found, expected, strict=True)) <= 1e-5


@pytest.mark.slow
def test_a_run_of_one_process_resumes_at_cp2(tiny, tmp_path):
    whole = tmp_path / "whole"
    succeed(1, [*tiny, OPTIMIZER, "--save", str(whole), "--save-interval", "4"])
    saved = [*tiny, OPTIMIZER], whole, at_step_4(whole, tmp_path / "stopped")
    found, expected = gone_on(saved, tmp_path / "on", 2, CP2)
    assert max(largest(mine, theirs) for mine, theirs in zip(found, expected, strict=True)) <= 1e-5
