"""A norm scheme in a file of its user's (``outside/fading.py``, the example of docs/schemes.md), in every program."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron_cod.checkpoint.tensors import Checkpoint
from megatron_cod.cli import merge as merge_command
from megatron_cod.errors import UserError
from megatron_cod.merging import MergeJob, members_of, merge
from megatron_cod.schemes.row import Scheme
from megatron_cod.schemes.table import import_modules, register_scheme
from tests import oracle
from tests.conftest import ROOT, TINY
from tests.distributed.engine import MODEL_FLAGS, Engine, shape_flags, start_megatron
from tests.distributed.launch import run_ranks, run_training_ranks
from tests.distributed.mapping import Layout
from tests.distributed.oracle_runs import SHAPE, SP, VECTORS, full_logits, init_weights
from tests.distributed.runs import PP2, at_step_4, losses, refuse, succeed
from tests.huggingface.megatron import ONE, megatron_logits
from tests.huggingface.models import tokens, transformers_logits
from tests.programs import run_program

RECIPE = ROOT / "recipes" / "debug.yaml"
DEBUG_RECIPE = ("--recipe", str(RECIPE))
MODULE = "tests.schemes.outside.fading"
IMPORT = ["--import", MODULE]
FADING = [*IMPORT, "--norm-scheme", "fading", "--fading-rate", "2"]
PP2_VPP2 = [*PP2, "--num-virtual-stages-per-pipeline-rank", "2"]
TP2_SP = ["--tensor-model-parallel-size", "2", "--sequence-parallel"]


def test_page_shows_this_file():
    page = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "schemes.md").read_text(), re.DOTALL)[1]
    assert page == (ROOT / "tests" / "schemes" / "outside" / "fading.py").read_text()


def weights() -> dict[str, torch.Tensor]:
    """Those of the vectors, and a learned scalar for each layer."""
    scales = {f"model.layers.{layer}.mlp_scale": torch.tensor([0.5 + layer / 4]) for layer in range(SHAPE.layers)}
    return {**init_weights(load_file(VECTORS)), **scales}


def folded(held: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same function as Pre-LN: factors in the gammas, scalars in the last projections of the MLPs."""
    found = dict(held)
    for layer in range(SHAPE.layers):
        prefix = f"model.layers.{layer}."
        for norm in ("input_layernorm.weight", "post_attention_layernorm.weight"):
            found[prefix + norm] = held[prefix + norm] / (1 + 2.0 * (layer + 1) / SHAPE.layers)
        found[prefix + "mlp.down_proj.weight"] = held[prefix + "mlp.down_proj.weight"] * held[prefix + "mlp_scale"]
    return found


def worker(_rank: int, layout: Layout) -> dict:
    import_modules([MODULE])
    vectors = load_file(VECTORS)
    batch = ["--micro-batch-size", "1", "--global-batch-size", "2"]
    args = start_megatron([*MODEL_FLAGS, *shape_flags(SHAPE, 32), *batch, *layout.all_flags()])
    args.fading_rate = 2.0
    engine = Engine(args, layout, SHAPE, "fading")
    engine.load(weights())
    return engine.forward_backward(vectors["tokens"][0], vectors["labels"][0], forward_only=True)


@pytest.mark.slow_except("Layout(tp=1, pp=2, vp=2, dp=1, flags=(), counts=(), cp=1)")
@pytest.mark.parametrize("layout", [Layout(pp=2, vp=2), Layout(tp=2, flags=SP)], ids=str)
def test_computes_its_formula_at_every_layout(layout):
    vectors = load_file(VECTORS)
    expected, _ = oracle.forward(folded(weights()), vectors["tokens"][0], "pre_ln", SHAPE)
    found = full_logits(run_ranks(layout.world, worker, layout), layout)
    assert (found - expected).abs().max() <= 1e-5
    stock, _ = oracle.forward(weights(), vectors["tokens"][0], "pre_ln", SHAPE)
    assert (found - stock).abs().max() > 0.1


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny):
    """A run of 8 steps at PP 2 x VPP 2, saved after 4 and 8."""
    folder = tmp_path_factory.mktemp("fading")
    ended = succeed(2, [*tiny, *FADING, *PP2_VPP2, "--save", str(folder), "--save-interval", "4"])
    depth_map = ended[0].output
    assert "layers 1..1, norm factors 0.6667..0.6667" in depth_map and "layers 4..4, norm factors 0.3333" in depth_map
    return folder


@pytest.mark.slow
def test_resumes_exactly_and_at_another_layout(whole, tiny, tmp_path):
    stopped = at_step_4(whole, tmp_path / "stopped")
    train, _ = losses(whole)
    for name, layout, tolerance in (("same", PP2_VPP2, 0.0), ("tp2", TP2_SP, 1e-5)):
        more = ["--load", str(stopped), "--save", str(tmp_path / name), "--save-interval", "4"]
        succeed(2, [*tiny, *FADING, *layout, *more])
        found, _ = losses(tmp_path / name)
        assert max(abs(found[step] - train[step]) for step in (5, 6, 7, 8)) <= tolerance, name


def test_its_checkpoint_is_refused_by_other_runs(whole, tiny):
    load = ["--load", str(whole), "--dry-run"]
    refuse(1, [*tiny, *load], r"trained with --norm-scheme fading, this run has lns")
    refuse(
        1, [*tiny, *FADING, "--fading-rate", "1", *load], r"trained with fading of fading_rate 2.0 \(this run: 1.0\)"
    )
    refuse(1, [*tiny, "--norm-scheme", "fading"], r"no norm scheme 'fading'.*--import MODULE")
    refuse(
        1, [*tiny, *IMPORT, "--fading-rate", "3"], r"--fading-rate does not go with --norm-scheme lns, only with fading"
    )


@pytest.mark.slow
def test_outside_scheme_rehearses(tiny):
    flags = ["--world-size", "2", "--run-rank", "1", *tiny, *FADING, *PP2]
    done = run_program("rehearse.py", *flags)
    assert done.returncode == 0, done.stderr
    assert "fading" in done.stdout
    refused = run_program("rehearse.py", "--world-size", "2", *tiny, "--norm-scheme", "fading")
    assert refused.returncode == 2 and "no norm scheme 'fading'" in refused.stderr


def test_outside_scheme_exports_as_its_row_says(whole, tmp_path):
    out = tmp_path / "hf"
    done = run_program("convert_hf.py", "export", "--checkpoint", whole, "--output", out, *IMPORT)
    assert done.returncode == 0, done.stderr
    refused = run_program("convert_hf.py", "export", "--checkpoint", whole, "--output", tmp_path / "x")
    assert refused.returncode == 2 and "--import MODULE" in refused.stderr
    model = [flag for flag in TINY if flag not in DEBUG_RECIPE]
    ours = megatron_logits(whole, ONE, tokens(257), *model, *FADING, recipe=RECIPE)[..., :257]
    assert (transformers_logits(out, tokens(257)) - ours).abs().max() <= 1e-5
    unscaled = run_program(
        "convert_hf.py", "export", "--checkpoint", whole, "--output", tmp_path / "u", *IMPORT, "--no-fold"
    )
    assert unscaled.returncode == 2 and "learned scales of fading" in unscaled.stderr


def test_outside_scheme_is_merged_with_its_options_compared(whole, tmp_path, monkeypatch):
    job = MergeJob(members_of(whole, None, None), tmp_path / "merged")
    with pytest.raises(UserError, match=r"--norm-scheme fading, which is not known here.*--import MODULE"):
        merge(job)
    monkeypatch.setattr("sys.argv", ["merge", "--run", str(whole), "--output", str(job.output), *IMPORT])
    merge_command.main()
    assert (job.output / "release" / "metadata.json").is_file()
    read = Checkpoint.common_state
    monkeypatch.setattr(Checkpoint, "common_state", lambda self: faded(read(self), self.path))
    with pytest.raises(UserError, match=r"not merged: fading_rate 1.0 and 2.0"):
        merge(MergeJob(job.members, tmp_path / "x"))


def faded(state: dict, path: Path) -> dict:
    if path.name == "iter_0000004":
        state["args"].fading_rate = 1.0
    return state


def test_outside_scheme_evaluates(whole, text_data, tmp_path):
    flags = ["--load", str(whole), "--eval-data", f"few={text_data / 'some_valid_text_document'}"]
    ended = run_training_ranks(1, [*flags, "--output", str(tmp_path / "found.json")], entry="evaluate")[0]
    assert ended.code == 0, ended.output
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["norm_scheme"] == "fading" and math.isfinite(found["total"]["loss"])


def test_every_program_lists_it(tiny):
    listed = run_program("compare_schemes.py", *IMPORT, "--list")
    assert "fading" in listed.stdout and "fading" not in run_program("compare_schemes.py", "--list").stdout
    arms = [
        "--recipe",
        str(ROOT / "recipes" / "debug.yaml"),
        *IMPORT,
        "--schemes",
        "lns,fading+fading-rate=2",
        "--dry-run",
    ]
    planned = run_program("compare_schemes.py", *arms)
    assert planned.returncode == 0 and "--fading-rate 2" in planned.stdout, planned.stderr
    shown = succeed(1, [*IMPORT, "--help"])[0].output
    assert "--fading-rate C" in shown and "fading" in shown


def test_rejects_duplicate_name_or_option():
    def row(**more) -> Scheme:
        return Scheme(**{"name": "other", "block": "", "reference": "", "default_init": "normal", **more})

    from megatron_cod.schemes.lns import LNSOptions
    from megatron_cod.schemes.options import CommonOptions

    with pytest.raises(ValueError, match="'lns' is registered already"):
        register_scheme(row(name="lns"))
    with pytest.raises(ValueError, match="must be a Python identifier"):
        register_scheme(row(name="my scheme"))
    with pytest.raises(ValueError, match="--gamma-init is one of every scheme"):
        register_scheme(row(options=CommonOptions))

    class Mine(LNSOptions):
        pass

    with pytest.raises(ValueError, match="--lns-placement is one of lns"):
        register_scheme(row(options=Mine))


def test_rejects_a_module_that_is_missing():
    with pytest.raises(ValueError, match=r"--import nowhere\.at_all: there is no such module"):
        import_modules(["nowhere.at_all"])
