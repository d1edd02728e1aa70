"""The figures are those of a direct computation, and the same at every layout."""

import json
import math

import numpy as np
import pytest

from tests.distributed.runs import PP2
from tests.training.evaluation import direct
from tests.training.evaluation.datasets import EOD
from tests.training.evaluation.runs import DOCUMENTS, result

TP2_SP = ["--tensor-model-parallel-size", "2", "--sequence-parallel"]
CP2 = ["--context-parallel-size", "2"]
VP2 = ["--num-virtual-stages-per-pipeline-rank", "2"]


def differences(found: dict, expected: dict[str, list[float]]) -> dict[str, float]:
    """Relative, of each row's loss; AssertionError where other tokens were counted."""
    whole = {**expected, "total": [loss for losses in expected.values() for loss in losses]}
    domains = [name for name in expected if name.startswith("mix/")]
    whole["mix"] = [loss for name in domains for loss in expected[name]]
    assert found["rows"].keys() == whole.keys()
    for name, losses in whole.items():
        assert found["rows"][name]["tokens"] == len(losses), name
    return {name: abs(found["rows"][name]["loss"] / np.mean(losses) - 1) for name, losses in whole.items()}


@pytest.fixture(scope="module")
def weights(checkpoints):
    return direct.exported_weights(checkpoints / "lns")


MODES = {
    "stream": ([], 32, 32, False, None),
    "stream, windows overlap": (["--stride", "7"], 32, 7, False, None),
    "document, a prefix": (DOCUMENTS, 32, 20, True, EOD),
    "document, other windows": (["--eval-mode", "document", "--seq-length", "100"], 100, 100, True, None),
}


@pytest.mark.parametrize(("flags", "size", "stride", "by_document", "prefix"), MODES.values(), ids=MODES)
@pytest.mark.slow
def test_equals_a_plain_loop(
    checkpoints, eval_data, asked, weights, tmp_path, flags, size, stride, by_document, prefix
):
    found = result(tmp_path, 1, ["--load", str(checkpoints / "lns"), *asked, *flags])
    losses = direct.measured(weights, direct.documents(eval_data), size, stride, by_document, prefix)
    largest = max(differences(found, losses).values())
    print(found["total"], largest)
    assert largest <= 1e-6
    for row in found["rows"].values():
        assert row["perplexity"] == pytest.approx(math.exp(row["loss"]), rel=1e-12)
    lines = [json.loads(line) for line in (eval_data / "mix.jsonl").read_text().splitlines()]
    size_of_a = sum(len(line["text"].encode()) for line in lines if line["source"] == "a")
    row = found["rows"]["mix/a"]
    assert row["text_bytes"] == size_of_a
    assert row["bits_per_byte"] == pytest.approx(row["loss"] * row["tokens"] / math.log(2) / size_of_a, rel=1e-12)
    assert found["rows"]["web"]["bits_per_byte"] is None and found["rows"]["total"]["bits_per_byte"] is None


LAYOUTS = {
    "dp2": (2, ["--micro-batch-size", "3"]),
    "tp2 sp": (2, TP2_SP),
    "pp2 vp2": (2, [*PP2, *VP2, "--micro-batch-size", "1"]),
    "tp2": (2, TP2_SP[:2]),
    "pp2 dp2": (4, PP2),
    "pp4": (4, ["--pipeline-model-parallel-size", "4"]),
    "tp2 pp2 vp2 dp2 sp": (8, [*TP2_SP, *PP2, *VP2]),
    "cp2": (2, CP2),
    "tp2 cp2 sp pp2": (8, [*CP2, *TP2_SP, *PP2]),
    "dp5": (5, ["--micro-batch-size", "7"]),
}
SLOW = ("tp2", "pp2 dp2", "pp4", "tp2 pp2 vp2 dp2 sp", "tp2 cp2 sp pp2", "dp5")


@pytest.fixture(scope="module")
def one_rank(checkpoints, asked, tmp_path_factory):
    """What one process finds, under a scheme that has no export."""
    folder = tmp_path_factory.mktemp("one")
    flags = ["--load", str(checkpoints / "sandwich_ln"), *asked, *DOCUMENTS]
    return flags, result(folder, 1, flags)["rows"]


@pytest.mark.slow_except("cp2", "tp2 sp")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in LAYOUTS]
)
def test_equal_at_every_layout(one_rank, tmp_path, name):
    flags, expected = one_rank
    world, layout = LAYOUTS[name]
    rows = result(tmp_path, world, [*flags, *layout])["rows"]
    assert {row: rows[row]["tokens"] for row in rows} == {row: expected[row]["tokens"] for row in expected}
    largest = max(abs(rows[row]["loss"] / expected[row]["loss"] - 1) for row in rows)
    print(name, largest)
    assert largest <= 1e-6
