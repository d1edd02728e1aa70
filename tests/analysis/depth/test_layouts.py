"""The same numbers from checkpoints of every layout, and from the exported Hugging Face directory."""

import pytest
import torch

from megatron_cod.analysis.depth.measure import METRICS, Budget, measure
from megatron_cod.analysis.depth.models import traced_transformers
from megatron_cod.huggingface.export import ExportJob, export_model
from megatron_cod.huggingface.generation import open_checkpoint, open_directory
from tests.distributed.launch import run_ranks
from tests.distributed.runs import succeed

LAYOUTS = {
    "pp2": (2, ["--pipeline-model-parallel-size", "2"]),
    "tp2": (2, ["--tensor-model-parallel-size", "2", "--sequence-parallel"]),
    "pp2 vp2": (2, ["--pipeline-model-parallel-size", "2", "--num-virtual-stages-per-pipeline-rank", "2"]),
}
STILL = ["--finetune", "--lr", "0", "--min-lr", "0", "--weight-decay", "0", "--train-iters", "1"]


@pytest.fixture(scope="module", params=["lns", "pre_ln"])
def trained(request, tiny, tmp_path_factory):
    """8 steps in one process: flags, and the run's directory."""
    folder, flags = tmp_path_factory.mktemp("one") / "run", [*tiny, "--norm-scheme", request.param]
    succeed(1, [*flags, "--save", str(folder), "--save-interval", "8", "--lr", "1e-2"])
    return flags, folder


def found(model) -> dict:
    text = torch.randint(0, 256, (26, 16), generator=torch.Generator().manual_seed(1))
    return measure(traced_transformers(model), Budget([text[:4]], [text[4:]], jacobian_draws=2), METRICS)


def numbers(value, path="") -> dict[str, float]:
    if isinstance(value, dict):
        return {key: one for name, held in value.items() for key, one in numbers(held, f"{path}/{name}").items()}
    if isinstance(value, list):
        return {key: one for place, held in enumerate(value) for key, one in numbers(held, f"{path}/{place}").items()}
    return {} if value is None or path.endswith("error") else {path: float(value)}


@pytest.mark.slow
def test_layouts_and_export_agree(trained, tmp_path):
    flags, folder = trained
    right = numbers(found(open_checkpoint(folder, None, None)[0]))
    assert len(right) > 100
    for name, (world, layout) in LAYOUTS.items():
        saved = tmp_path / name.replace(" ", "_")
        # Megatron writes the weights anew at this layout; at learning rate 0 they stay what they are.
        succeed(world, [*flags, *layout, *STILL, "--load", str(folder), "--save", str(saved), "--save-interval", "1"])
        assert numbers(found(open_checkpoint(saved, None, None)[0])) == pytest.approx(right, rel=1e-4, abs=1e-4), name
    export_model(ExportJob(folder, tmp_path / "hf"))
    exported = numbers(found(open_directory(tmp_path / "hf", None)[0]))
    assert exported == pytest.approx(right, rel=1e-4, abs=1e-4)


def native(_rank: int, folder) -> dict:
    """What is found in Megatron's own model of a checkpoint."""
    from megatron_cod.training.start.loading import trace_megatron

    text = torch.randint(0, 256, (26, 16), generator=torch.Generator().manual_seed(1))
    return measure(trace_megatron(folder, None, 16), Budget([text[:4]], [text[4:]], jacobian_draws=2), METRICS)


@pytest.mark.slow
def test_megatrons_own_model_has_the_numbers_of_its_export(trained):
    """So its own model may stand for the schemes that cannot be exported."""
    _, folder = trained
    right = numbers(found(open_checkpoint(folder, None, None)[0]))
    assert numbers(run_ranks(1, native, folder)[0]) == pytest.approx(right, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("scheme", ["post_ln", "mix_ln", "deepnorm"])
@pytest.mark.slow
def test_schemes_that_no_stock_architecture_computes(tiny, tmp_path, scheme):
    """Saved at PP 2, run in one process: all metrics, and a head that agrees with the model."""
    flags = [*tiny, "--norm-scheme", scheme, "--save", str(tmp_path / "run"), "--save-interval", "8"]
    succeed(2, [*flags, "--pipeline-model-parallel-size", "2"])
    numbers_found = run_ranks(1, native, tmp_path / "run")[0]
    assert len(numbers_found["removal"]) == 4
    assert 4.0 < numbers_found["loss"]["mean"] < 7.0  # 8 steps on bytes, then random text
    assert numbers_found["logit lens"][-1]["mean"] == pytest.approx(numbers_found["loss"]["mean"], abs=1e-5)


@pytest.mark.slow_except("lns")
def test_without_resolved_arguments_it_is_refused(trained, tmp_path):
    from megatron_cod.training.start.loading import load_megatron

    with pytest.raises(ValueError, match=r"holds no finished checkpoint"):
        load_megatron(tmp_path, None, 16)
    _, folder = trained
    for name in ("iter_0000008", "latest_checkpointed_iteration.txt"):
        (tmp_path / name).symlink_to(folder / name)
    with pytest.raises(ValueError, match=r"has no resolved_args.yaml, which has the settings of its model"):
        load_megatron(tmp_path, None, 16)
