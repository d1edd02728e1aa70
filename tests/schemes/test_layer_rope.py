"""LayerRoPE in runs: one value of the shared gains on all stages, resumed, resharded, exported; wrong ones are caught."""

import math
import sys
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from megatron_cod.checkpoint.tensors import Checkpoint
from megatron_cod.schemes.layer_rope import SITES, layer_gain
from tests.conftest import ROOT, TINY
from tests.distributed.engine import MODEL_FLAGS, Engine, shape_flags, start_megatron
from tests.distributed.launch import run_ranks
from tests.distributed.mapping import Layout
from tests.distributed.oracle_runs import SHAPE, VECTORS, init_weights, within_tolerance
from tests.distributed.runs import PP2, at_step_4, losses, refuse, succeed
from tests.distributed.scheme_runs import FOUR_SP, differences
from tests.huggingface.megatron import ONE, megatron_logits
from tests.huggingface.models import tokens, transformers_logits
from tests.oracle_schemes import Variant, parameters
from tests.programs import run_program

VIRTUAL = Layout(pp=2, vp=2)
ROPE = ["--norm-scheme", "layer_rope"]
PP2_VPP2 = [*PP2, "--num-virtual-stages-per-pipeline-rank", "2"]
TP2_SP = ["--tensor-model-parallel-size", "2", "--sequence-parallel"]


def test_the_gain_at_layer_1_is_turned_by_one_radian_at_the_first_pair():
    gain = layer_gain(torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.tensor([0.0, -0.5, 0.0, -0.5]), 1, 100.0)
    expected = [math.cos(1), math.sin(1), math.cos(0.1), math.sin(0.1)]  # 100 ** (-2/4) = 0.1
    assert gain.tolist() == pytest.approx(expected)
    fourth = layer_gain(torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.tensor([0.0, -0.5, 0.0, -0.5]), 4, 100.0)
    assert fourth[:2].tolist() == pytest.approx([math.cos(0.5) / 2, math.sin(0.5) / 2])


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny):
    """A run of 8 steps at PP 2 x VPP 2, saved after 4 and 8."""
    folder = tmp_path_factory.mktemp("rope")
    succeed(2, [*tiny, *ROPE, *PP2_VPP2, "--save", str(folder), "--save-interval", "4"])
    return folder


@pytest.mark.slow
def test_a_checkpoint_holds_the_gains_once(whole):
    opened = Checkpoint(whole / "iter_0000008")
    held = {
        key: part.shape for key, part in opened.slices.items() if "shared_gains" in key[0] and "optim" not in key[0]
    }
    assert len(held) == 2 * len(SITES)
    assert all(layer is None for _, layer in held)
    gamma = opened.read(opened.slices["decoder.shared_gains.mlp_in.gamma", None], 0, 32)
    assert gamma.dtype == torch.float32 and (gamma - 1).abs().max() > 1e-4  # trained


@pytest.mark.slow_except("same")
@pytest.mark.parametrize(
    ("world", "layout", "tolerance"),
    [
        (2, PP2_VPP2, 0.0),
        (1, [], 1e-5),
        pytest.param(2, TP2_SP, 1e-5, marks=pytest.mark.slow),
        pytest.param(4, [*PP2_VPP2, "--micro-batch-size", "1"], 1e-5, marks=pytest.mark.slow),
    ],
    ids=["same", "one process", "tp2", "dp2"],
)
def test_resumes_exactly_and_at_another_layout(whole, tiny, tmp_path, world, layout, tolerance):
    stopped = at_step_4(whole, tmp_path / "stopped")
    train, _ = losses(whole)
    more = ["--load", str(stopped), "--save", str(tmp_path / "run"), "--save-interval", "4"]
    succeed(world, [*tiny, *ROPE, *layout, *more])
    found, _ = losses(tmp_path / "run")
    assert max(abs(found[step] - train[step]) for step in (5, 6, 7, 8)) <= tolerance


COPIES = {
    "replicas": Layout(pp=2, dp=2, flags=("--use-distributed-optimizer", "--clip-grad", "0.1")),
    "virtual stages": Layout(pp=2, vp=2, flags=("--clip-grad", "0.1")),
    "four stages": Layout(pp=4, flags=("--use-distributed-optimizer",)),
}


STEPS = 20


def trained_gains(_rank: int, layout: Layout) -> list[tuple[str, torch.Tensor]]:
    """A rank's copy of the shared gains after some steps."""
    vectors = load_file(VECTORS)
    batch = ["--micro-batch-size", "1", "--global-batch-size", "2"]
    args = start_megatron([*MODEL_FLAGS, *shape_flags(SHAPE, 32), *batch, *layout.all_flags()])
    engine = Engine(args, layout, SHAPE, "layer_rope")
    engine.load(parameters(init_weights(vectors), Variant("layer_rope"), SHAPE))
    places = [step % len(vectors["tokens"]) for step in range(STEPS)]
    engine.train(vectors["tokens"][places], vectors["labels"][places])
    return [(name, tensor) for name, _, tensor in engine.parts("data") if name.startswith("shared_gains.")]


@pytest.mark.slow
@pytest.mark.parametrize("layout", COPIES.values(), ids=COPIES)
def test_all_stages_keep_one_value_to_the_bit(layout):
    results = run_ranks(layout.world, trained_gains, layout)
    copies: dict[str, list[torch.Tensor]] = {}
    for rank in results:
        for name, tensor in rank:
            copies.setdefault(name, []).append(tensor)
    assert len(copies) == 2 * len(SITES) and all(len(found) == layout.world for found in copies.values())
    for name, (first, *others) in copies.items():
        assert all(torch.equal(first, other) for other in others), name


@pytest.mark.parametrize("optimizer", [[], ["--use-distributed-optimizer"]], ids=["optimizer", "distributed optimizer"])
@pytest.mark.slow
def test_trains_saves_and_resumes_in_bf16(tiny, tmp_path, optimizer):
    flags = [*tiny, *ROPE, *PP2, "--bf16", *optimizer, "--save", str(tmp_path), "--save-interval", "4"]
    succeed(2, [*flags, "--exit-interval", "4"])
    succeed(2, [*flags, "--load", str(tmp_path)])
    train, _ = losses(tmp_path)
    assert list(train) == list(range(1, 9)) and all(math.isfinite(loss) for loss in train.values())


@pytest.mark.slow
def test_exports_to_a_stock_llama(whole, tmp_path):
    out = tmp_path / "hf"
    done = run_program("convert_hf.py", "export", "--checkpoint", whole, "--output", out)
    assert done.returncode == 0, done.stderr
    model = [flag for flag in TINY if flag not in ("--recipe", str(ROOT / "recipes" / "debug.yaml"))]
    ours = megatron_logits(whole, ONE, tokens(257), *model, *ROPE, recipe=ROOT / "recipes" / "debug.yaml")[..., :257]
    assert (transformers_logits(out, tokens(257)) - ours).abs().max() <= 1e-5


def not_summed() -> None:
    """The mutant: stages keep the gradients of their own layers."""
    module: Any = sys.modules["megatron.core.distributed.finalize_model_grads"]
    module._allreduce_conditional_embedding_grads = lambda *rest, **kwargs: None


def summed_for_each_chunk() -> None:
    """The mutant: virtual stages are summed twice."""
    module: Any = sys.modules["megatron.core.distributed.finalize_model_grads"]
    right = module._allreduce_conditional_embedding_grads

    def twice(*rest, **kwargs):
        right(*rest, **kwargs)
        right(*rest, **kwargs)

    module._allreduce_conditional_embedding_grads = twice


def from_zero() -> None:
    """The mutant: layers count from 0 (and the first one as 1)."""
    from megatron_cod.schemes import layer_rope

    right = layer_rope.layer_gain
    layer_rope.layer_gain = lambda gamma, numbers, layer, base: right(gamma, numbers, max(layer - 1, 1), base)


def of_the_stage() -> None:
    """The mutant: layers count per stage."""
    from megatron_cod.schemes.layer_rope import _TakesGain

    right = _TakesGain.take
    _TakesGain.take = lambda self, gain, layer, base: right(self, gain, (layer - 1) % 2 + 1, base)


def halves_for_pairs() -> None:
    """The mutant: channel j is paired with j + h/2, as rotary embeddings do."""
    from megatron_cod.schemes import layer_rope

    right = layer_rope.layer_gain

    def paired(gamma, numbers, layer, base):
        mixed = gamma.unflatten(0, (2, -1)).T.flatten()
        return right(mixed, numbers, layer, base).unflatten(0, (-1, 2)).T.flatten()

    layer_rope.layer_gain = paired


MUTANTS = {
    "not summed": (VIRTUAL, not_summed),
    "summed twice": (VIRTUAL, summed_for_each_chunk),
    "from zero": (FOUR_SP, from_zero),
    "of the stage": (VIRTUAL, of_the_stage),
    "halves for pairs": (FOUR_SP, halves_for_pairs),
}


@pytest.mark.parametrize("name", MUTANTS)
@pytest.mark.slow_except("not summed")
def test_detects_wrong_implementation(name):
    layout, mutate = MUTANTS[name]
    try:
        found = differences("layer_rope", layout, mutate)
    except AssertionError as error:
        assert "disagrees" in str(error)  # stages with other values of one tensor
        return
    assert not within_tolerance(found), found


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--layer-rope-base", "0.5"], "--layer-rope-base 0.5 must be above 1"),
        (["--layer-rope-scale", "nan"], "must be a finite number"),
        (["--normalization", "LayerNorm"], "--normalization LayerNorm"),
        (["--mtp-num-layers", "1"], "--mtp-num-layers"),
        (["--gamma-init"], "--gamma-init does not go with --norm-scheme layer_rope"),
    ],
)
def test_rejects_bad_input_in_one_line(tiny, flags, says):
    refuse(1, [*tiny, *ROPE, *flags, "--dry-run"], says)


def test_another_base_or_form_is_refused(whole, tiny):
    refuse(1, [*tiny, *ROPE, "--layer-rope-base", "50", "--load", str(whole), "--dry-run"], "layer_rope_base")
    refuse(1, [*tiny, *ROPE, "--layer-rope-peri", "--load", str(whole), "--dry-run"], "layer_rope_peri")
    refuse(1, [*tiny, "--load", str(whole), "--dry-run"], "trained with --norm-scheme layer_rope")
