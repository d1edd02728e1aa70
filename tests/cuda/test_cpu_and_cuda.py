"""From CPU processes to GPUs and back: checkpoints, resolved arguments, weights drawn on the host."""

import shutil
from functools import cache

import pytest
import yaml

from megatron_cod.adaptations import cpu
from tests.cuda.resumes import DISTRIBUTED, DP2, Saved, difference, launch, losses, save
from tests.cuda.runs import train, train_on_cpu

OTHER = {"cpu": "cuda", "cuda": "cpu"}
TP2, PP2 = ("--tensor-model-parallel-size", "2"), ("--pipeline-model-parallel-size", "2")
BOTH_WAYS = pytest.mark.parametrize("device", ["cpu", "cuda"])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(device, ranks, flags) -> a run that was stopped."""

    @cache
    def run(device: str, world: int, *flags: str) -> Saved:
        return save(tmp_path_factory.mktemp("run"), world, *flags, device=device)

    return run


@BOTH_WAYS
@pytest.mark.slow_except("cpu")
def test_a_checkpoint_loads_on_the_other_device(saved, tmp_path, device):
    run = saved(device, 1)
    resumed = launch(1, tmp_path, "--load", str(run.stopped), device=OTHER[device]).succeeded()
    assert "its random states are skipped, as with --no-load-rng" in resumed.console
    assert max(abs(loss - run.whole[step]) for step, loss in losses(tmp_path).items()) <= 1e-6


@pytest.mark.slow
def test_random_states_are_loaded_on_the_same_device(saved, tmp_path):
    resumed = launch(1, tmp_path, "--load", str(saved("cuda", 1).stopped)).succeeded()
    assert "random states" not in resumed.console


def load_foreign_states() -> None:
    """A mutant: a checkpoint's random states are loaded whatever they are of."""
    from megatron_cod.training.loop import random_states

    random_states._foreign = lambda args: ""


@BOTH_WAYS
@pytest.mark.slow
def test_detects_random_states_of_the_other_device(saved, tmp_path, device):
    flags = ["--load", str(saved(device, 1).stopped)]
    assert launch(1, tmp_path, *flags, device=OTHER[device], before=load_foreign_states).code != 0


def record_no_device() -> None:
    """As version 0.1 did: checkpoints do not record what they were trained on."""
    from megatron_cod.checkpoint import scheme_record

    record = scheme_record.record

    def without(args):
        record(args)
        del args.device_kind

    scheme_record.record = without


@BOTH_WAYS
@pytest.mark.slow
def test_a_checkpoint_that_records_no_device_loads(tmp_path, device):
    old = tmp_path / "old"
    launch(1, old, "--exit-interval", "2", "--save-interval", "2", device=device, before=record_no_device).succeeded()
    resumed = launch(1, tmp_path / "new", "--load", str(old), device=OTHER[device]).succeeded()
    assert "its random states are skipped" in resumed.console


LAYOUTS = {
    "cpu tp2 -> gpu": ("cpu", 2, TP2, 1, ()),
    "cpu pp2 -> gpu tp2": ("cpu", 2, PP2, 2, TP2),
    "cpu dp2 -> gpu": ("cpu", 2, (DISTRIBUTED, *DP2), 1, (DISTRIBUTED,)),
    "gpu pp2 -> cpu": ("cuda", 2, PP2, 1, ()),
    "gpu tp2 -> cpu pp2": ("cuda", 2, TP2, 2, PP2),
    "gpu dp2 -> cpu dp2": ("cuda", 2, (DISTRIBUTED, *DP2), 2, (DISTRIBUTED, *DP2)),
}


@pytest.mark.slow
@pytest.mark.parametrize(("device", "world", "flags", "other", "now"), LAYOUTS.values(), ids=LAYOUTS)
def test_loads_at_another_layout_on_the_other_device(saved, tmp_path, device, world, flags, other, now):
    run = saved(device, world, *flags)
    assert difference(run, tmp_path, other, *now, device=OTHER[device]) <= 1e-5


@pytest.mark.slow
def test_geglu_trains_on_as_on_the_cpu(saved, tmp_path):
    """With Megatron's fusions as a GPU has them by default: none of them knows this gate."""
    run = saved("cpu", 1, "--geglu")
    assert difference(run, tmp_path / "geglu", 1, "--geglu") <= 1e-5
    refused = launch(1, tmp_path / "refused", "--load", str(run.stopped))
    assert refused.code == 2 and "activation_func) gelu_tanh, this run has silu" in refused.console
    assert difference(run, tmp_path / "silu", 1, "--override-model-check") > 3e-5


@pytest.mark.slow
def test_detects_missing_optimizer_state(saved, tmp_path):
    """The comparison above can fail: weights alone give other losses from the second step on."""
    assert difference(saved("cpu", 2, *TP2), tmp_path, 1, "--no-load-optim") > 1e-4


@BOTH_WAYS
@pytest.mark.slow
def test_resolved_arguments_are_a_recipe_for_the_other_device(tmp_path, device):
    launch(1, tmp_path / "one", "--train-iters", "2", device=device).succeeded()
    recipe = ["--recipe", str(tmp_path / "one" / "resolved_args.yaml"), "--unset", "save"]
    other = train(1, tmp_path, *recipe) if device == "cpu" else train_on_cpu(1, *recipe)
    assert len(other.succeeded().losses) == 2


@pytest.mark.slow
def test_resolved_arguments_of_earlier_versions_are_a_recipe_on_a_gpu(tmp_path):
    """They held what a run on CPU processes needs."""
    launch(1, tmp_path / "one", "--train-iters", "2", device="cpu").succeeded()
    path = tmp_path / "one" / "resolved_args.yaml"
    flags = [flag.removeprefix("--") for flag in cpu.DEFAULT_FLAGS if flag.startswith("--")]
    recipe = yaml.safe_load(path.read_text()) | dict.fromkeys(flags, True)
    path.write_text(yaml.safe_dump(recipe | {"transformer-impl": "local", "distributed-backend": "gloo"}))
    run = train(1, tmp_path, "--recipe", str(path), "--unset", "save").succeeded()
    assert len(run.losses) == 2 and "the recipe is of a run on CPU processes" in run.console


@pytest.mark.slow
def test_weights_drawn_on_the_host_train_on_the_gpu(tmp_path):
    run = launch(1, tmp_path, "--use-cpu-initialization").succeeded()
    assert len(run.losses) == 4 and run.losses[-1] < run.losses[0]
    assert sum(number for name, number in run.reports[0].items() if name.startswith("kernel:")) > 500


def leave_on_the_host() -> None:
    """A mutant: the model's weights stay on the CPU, and its kernels are given them."""
    from megatron_cod import model

    model._to_device = lambda chunks: chunks


@pytest.mark.slow
def test_detects_cpu_tensor_given_to_a_kernel(tmp_path):
    run = launch(1, tmp_path, "--use-cpu-initialization", before=leave_on_the_host)
    assert run.code != 0 and not run.losses
    assert "same device" in run.console


def norm_weights_on_the_host() -> None:
    """A mutant: each norm of a layer reads its weight from the host."""
    from megatron_cod.backends.torch_norm import DepthScaledTorchRMSNorm

    forward = DepthScaledTorchRMSNorm.forward
    DepthScaledTorchRMSNorm.forward = lambda self, x: forward(self, x) * self.weight.detach().cpu()


@pytest.mark.slow
def test_detects_norm_weight_on_the_host(tmp_path):
    run = launch(1, tmp_path, before=norm_weights_on_the_host)
    assert run.code != 0 and "same device" in run.console


@pytest.mark.slow
def test_an_untouched_copy_is_not_needed(saved, tmp_path):
    """A checkpoint that is loaded from the other device is not written to."""
    stopped = saved("cpu", 1).stopped
    copy = tmp_path / "copy"
    shutil.copytree(stopped, copy)
    launch(1, tmp_path / "gpu", "--load", str(copy)).succeeded()
    assert sorted(p.name for p in copy.rglob("*")) == sorted(p.name for p in stopped.rglob("*"))
