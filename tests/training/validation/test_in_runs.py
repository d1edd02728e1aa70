"""Evaluations of real runs: the same tokens each time and at each layout, the test set by its name, --skip-train."""

import re

import pytest

from megatron_cod.analysis.metrics import BITS, TEST_LOSS, VALID_LOSS, read_metrics
from tests.distributed.launch import Ended, run_training_ranks

STILL = ["--lr", "1e-30", "--min-lr", "0", "--weight-decay", "0", "--eval-interval", "2", "--train-iters", "6"]
"""Weights that do not move: two evaluations differ only where their tokens do."""
PP2 = ["--pipeline-model-parallel-size", "2"]
LAYOUTS = {
    "dp 2": (2, []),
    "virtual stages": (2, [*PP2, "--num-virtual-stages-per-pipeline-rank", "2", "--micro-batch-size", "1"]),
    "tp 2": (2, ["--tensor-model-parallel-size", "2"]),
    "cp 2": (2, ["--context-parallel-size", "2"]),
    "cyclic": (1, ["--dataloader-type", "cyclic"]),
    "loader process": (1, ["--num-workers", "1"]),
}


def train(world: int, flags: list[str], before=None) -> tuple[str, list[Ended]]:
    ended = run_training_ranks(world, flags, before=before)
    assert [rank.code for rank in ended] == [0] * world, "\n----\n".join(rank.output[-2500:] for rank in ended)
    return "".join(rank.output for rank in ended), ended


def validations(folder):
    return read_metrics(folder / "metrics.jsonl").scalars[VALID_LOSS]


@pytest.fixture(scope="module")
def still(tiny, text_data, tmp_path_factory):
    """A run whose weights stay as they are, with a test set."""
    folder = tmp_path_factory.mktemp("still")
    test = ["--test-data-path", str(text_data / "some_train_text_document")]
    output, _ = train(1, [*tiny, *STILL, *test, "--save", str(folder), "--save-interval", "3"])
    return folder, output


@pytest.mark.slow
def test_every_evaluation_reads_the_same_tokens(still):
    found = validations(still[0])
    assert list(found) == [2, 4, 6] and len(set(found.values())) == 1
    assert re.search(r"validation: the same 8 of \d+ samples \(256 tokens\) at every evaluation", still[1])


def _megatrons_own_sets():
    from megatron_cod.training.validation.evaluations import Evaluations

    Evaluations.around_sets = lambda self, provider: provider


@pytest.mark.slow
def test_detects_evaluation_of_the_next_batches(tiny, tmp_path):
    """The mutant: Megatron's own sets, of which each evaluation takes the next batches."""
    train(1, [*tiny, *STILL, "--save", str(tmp_path), "--save-interval", "6"], before=_megatrons_own_sets)
    assert len(set(validations(tmp_path).values())) == 3


@pytest.mark.slow
def test_test_set_is_named_and_each_set_is_reported_once(still):
    folder, output = still
    metrics = read_metrics(folder / "metrics.jsonl")
    assert output.count("\nvalidation at step 6: ") == 1 and output.count("\ntest at step 6: ") == 1
    assert list(metrics.scalars[TEST_LOSS]) == [6]
    assert metrics.last(TEST_LOSS) != metrics.last(VALID_LOSS)
    assert "  test           " in output
    lines = (folder / "metrics.jsonl").read_text()
    assert lines.count(f'"{VALID_LOSS}"') == 3 and lines.count(f'"{TEST_LOSS}"') == 1
    assert lines.count('"stream variance/layer 004"') == 3  # on the validation set alone
    # One token a byte but for the end of the document.
    bits = metrics.last(f"{BITS} validation")
    assert bits == pytest.approx(metrics.last(VALID_LOSS) / 0.6931471805599453, rel=1e-3)


def test_skip_train_reports_and_needs_no_save_interval(still, tiny, text_data, tmp_path):
    folder, _ = still
    test = ["--test-data-path", str(text_data / "some_train_text_document")]
    flags = [*tiny, *STILL, *test, "--skip-train", "--load", str(folder), "--save", str(tmp_path / "new")]
    output, _ = train(1, flags)
    trained, found = (read_metrics(one / "metrics.jsonl") for one in (folder, tmp_path / "new"))
    for name in (VALID_LOSS, TEST_LOSS):
        assert found.scalars[name] == {6: trained.last(name)}
    assert "\nvalidation at step 6: loss" in output and "\ntest at step 6: loss" in output


@pytest.mark.slow
def test_reads_the_whole_set_if_requested(tiny, tmp_path):
    """Its last window is shorter than the others and counts as well: all tokens but the first are predicted."""
    flags = [*tiny, *STILL, "--full-validation", "--train-iters", "2", "--save", str(tmp_path), "--save-interval", "2"]
    output, _ = train(1, flags)
    assert re.search(r"validation: all \d+ samples of the set", output)
    for world, layout in ((2, PP2),):
        again, _ = train(world, [*flags[:-4], "--load", str(tmp_path), "--skip-train", *layout])
        loss = re.search(r"validation at step 2: loss (\d\.\d+)", again)
        assert loss and abs(float(loss[1]) - validations(tmp_path)[2]) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_same_loss_at_each_layout(still, tiny, tmp_path, name):
    world, flags = LAYOUTS[name]
    train(world, [*tiny, *STILL, *flags, "--load", str(still[0]), "--skip-train", "--save", str(tmp_path / "new")])
    assert validations(tmp_path / "new")[6] == pytest.approx(validations(still[0])[6], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--eval-iters", "3"], ["--dataloader-type", "cyclic"]])
def test_resumed_run_evaluates_the_same(tiny, tmp_path, more):
    flags = [*tiny, "--save", str(tmp_path / "a"), "--save-interval", "3", "--eval-interval", "2", *more]
    train(1, flags)
    train(1, [*flags, "--exit-interval", "3", "--save", str(tmp_path / "b")])
    train(1, [*flags, "--load", str(tmp_path / "b"), "--save", str(tmp_path / "b")])
    assert validations(tmp_path / "a") == validations(tmp_path / "b")


@pytest.mark.slow
def test_changed_eval_iters_on_resume_is_still_one_set(still, tiny, tmp_path):
    for kind in ("single", "cyclic"):
        flags = [*tiny, *STILL, "--train-iters", "12", "--eval-iters", "3", "--load", str(still[0])]
        flags += ["--override-opt_param-scheduler"]
        folder = tmp_path / kind
        train(1, [*flags, "--dataloader-type", kind, "--save", str(folder), "--save-interval", "6"])
        found = list(validations(folder).values())
        assert found == pytest.approx([found[0]] * len(found), rel=1e-6) and len(found) == 3


def test_rejects_full_validation_of_weighted_data(tiny, text_data):
    data = str(text_data / "some_valid_text_document")
    ended = run_training_ranks(1, [*tiny, "--full-validation", "--valid-data-path", "1.0", data])
    assert ended[0].code == 2 and "--full-validation" in ended[0].output and "drawn by weights" in ended[0].output
