"""Architectures: the loss that Megatron's own validation prints, from the checkpoint it was saved with, at two layouts."""

import numpy as np
import pytest

from megatron_cod.analysis.metrics import VALID_LOSS, read_metrics
from tests.distributed.runs import PP2, succeed
from tests.training.evaluation.datasets import write_dataset
from tests.training.evaluation.runs import result

ROWS, SIZE = 12, 32
TP2_SP = ["--tensor-model-parallel-size", "2", "--sequence-parallel"]
EP2 = ["--expert-model-parallel-size", "2"]
MOE = ["--num-experts", "4", "--moe-router-topk", "2", "--moe-token-dispatcher-type", "alltoall"]

TRAINED = {
    "dense": (1, []),
    "mtp": (1, ["--mtp-num-layers", "1"]),
    "moe": (2, [*MOE, *EP2]),
    "bf16": (1, ["--bf16"]),
    "learned positions": (1, ["--position-embedding-type", "learned_absolute"]),
    "a vocabulary padded by tp": (2, ["--unset", "padded-vocab-size", *TP2_SP]),
}
"""Processes that train, and flags."""

MEASURED = {"mtp": [*PP2], "moe": EP2, "bf16": TP2_SP, "a vocabulary padded by tp": PP2}
"""The second layout; data parallel unless it stands here."""
FAST = ("dense",)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """A dataset of exactly ROWS rows of training."""
    prefix = tmp_path_factory.mktemp("rows") / "valid"
    write_dataset(prefix, [np.random.default_rng(3).integers(32, 120, ROWS * SIZE + 1)])
    return prefix


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in FAST else [pytest.mark.slow]) for n in TRAINED])
def test_equals_megatrons_validation(tiny, rows, tmp_path, name):
    world, flags = TRAINED[name]
    # An interval beyond the end: one validation, over one pass of the data.
    validation = ["--eval-interval", "9", "--eval-iters", str(ROWS // 4), "--valid-data-path", str(rows)]
    saved = ["--save", str(tmp_path / "run"), "--save-interval", "2"]
    succeed(world, [*tiny, "--train-iters", "2", *validation, *saved, *flags])
    validated = read_metrics(tmp_path / "run" / "metrics.jsonl").last(VALID_LOSS)
    for layout in ([], MEASURED.get(name, ["--micro-batch-size", "5"])):
        flags = ["--load", str(tmp_path / "run"), "--eval-data", str(rows), *layout]
        row = result(tmp_path, 2 if layout else 1, flags)["rows"]["valid"]
        print(name, layout, validated, row["loss"] / validated - 1)
        assert row["tokens"] == ROWS * SIZE
        assert row["loss"] == pytest.approx(validated, rel=1e-3 if name == "bf16" else 1e-6)
