"""Fully sharded data parallelism trains as plain replicas do; weights made on the meta device take a checkpoint's."""

import pytest

from megatron_cod.analysis.metrics import TRAIN_LOSS, read_metrics
from tests.distributed.launch import run_training_ranks
from tests.distributed.runs import refuse

DP2 = ["--micro-batch-size", "1", "--eval-iters", "0"]
META = "--init-model-with-meta-device"


def losses(flags: list[str], folder) -> dict[int, float]:
    file = folder / "metrics.jsonl"
    ended = run_training_ranks(2, [*flags, "--metrics-file", str(file)])
    assert [rank.code for rank in ended] == [0, 0], ended[0].output[-3000:]
    assert "layers 1..4, norm factors 1.0000..0.5000" in ended[0].output
    return read_metrics(file).scalars[TRAIN_LOSS]


@pytest.fixture(scope="module")
def plain(tiny, tmp_path_factory):
    return losses([*tiny, *DP2], tmp_path_factory.mktemp("plain"))


@pytest.mark.slow
def test_trains_like_data_parallelism(plain, tiny, tmp_path):
    found = losses([*tiny, *DP2, "--use-torch-fsdp2"], tmp_path)
    assert found.keys() == plain.keys()
    assert max(abs(found[step] - plain[step]) for step in plain) <= 1e-5


@pytest.mark.slow
def test_weights_on_the_meta_device_take_those_of_a_checkpoint(plain, tiny, tmp_path):
    flags = [*tiny, *DP2, "--save", str(tmp_path), "--save-interval", "4"]
    assert run_training_ranks(2, [*flags, "--exit-interval", "4"])[0].code == 0
    found = losses([*flags, "--load", str(tmp_path), META], tmp_path / "on")
    assert found == {step: loss for step, loss in plain.items() if step > 4}


@pytest.mark.slow
def test_weights_on_the_meta_device_without_values_are_refused(tiny, tmp_path):
    refuse(2, [*tiny, *DP2, META], rf"{META} leaves the weights without values until a checkpoint is loaded")
    refuse(2, [*tiny, *DP2, META, "--load", str(tmp_path)], rf"{META} leaves the weights without values")
    refuse(2, [*tiny, *DP2, META, "--use-torch-fsdp2"], rf"{META} does not go with --use-torch-fsdp2")


@pytest.mark.slow
def test_detects_another_scheme(plain, tiny, tmp_path):
    """The comparison above can fail: without the factor the losses differ."""
    file = tmp_path / "metrics.jsonl"
    flags = [*tiny, *DP2, "--use-torch-fsdp2", "--norm-scheme", "pre_ln", "--init-policy", "normal"]
    assert run_training_ranks(2, [*flags, "--metrics-file", str(file)])[0].code == 0
    found = read_metrics(file).scalars[TRAIN_LOSS]
    assert max(abs(found[step] - plain[step]) for step in plain) > 1e-4


MEGATRON_FSDP = ["--use-megatron-fsdp", "--data-parallel-sharding-strategy", "optim_grads_params"]


def test_megatron_fsdp_needs_a_gpu(tiny):
    flags = [*tiny, *DP2, *MEGATRON_FSDP, "--ckpt-format", "fsdp_dtensor", "--use-distributed-optimizer"]
    refuse(2, flags, "--use-megatron-fsdp needs a GPU; --use-torch-fsdp2 runs without")


@pytest.mark.gpu
def test_megatron_fsdp_on_a_gpu(tiny, tmp_path):
    pytest.importorskip("einops", reason="Megatron-FSDP needs einops")
    flags = [*tiny, *MEGATRON_FSDP, "--ckpt-format", "fsdp_dtensor", "--use-distributed-optimizer"]
    ended = run_training_ranks(1, [*flags, "--metrics-file", str(tmp_path / "m.jsonl")])
    assert ended[0].code == 0, ended[0].output[-3000:]
    assert "layers 1..4, norm factors 1.0000..0.5000" in ended[0].output
