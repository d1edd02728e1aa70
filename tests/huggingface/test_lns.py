"""A trained checkpoint of each scheme that folds: export, stock transformers' logits, import, the same checkpoint."""

import json

import pytest
import torch

from megatron_cod.checkpoint.tensors import WEIGHTS, Checkpoint, kind_of
from megatron_cod.huggingface import folding
from megatron_cod.huggingface.checkpoint import find_checkpoint
from megatron_cod.huggingface.export import ExportJob, export_model
from megatron_cod.huggingface.importing import ImportJob, import_model
from megatron_cod.huggingface.memory import load_as_transformers
from tests.conftest import ROOT
from tests.distributed.runs import PP2, succeed
from tests.huggingface.megatron import ONE, TP2, megatron_logits
from tests.huggingface.megatron import PP2 as PP2_LAYOUT
from tests.huggingface.models import same_tensors, tensors, tokens, transformers_logits

TOLERANCE = 1e-5
SHAPE = [
    *("--num-layers", "4", "--hidden-size", "32", "--ffn-hidden-size", "64", "--max-position-embeddings", "32"),
    *("--group-query-attention", "--num-query-groups", "2", "--seq-length", "32"),
]
SCHEMES = {
    "lns": [],
    "lns 0.7": ["--norm-scheme", "lns", "--lns-exponent", "0.7"],
    "lns attention": ["--norm-scheme", "lns", "--lns-placement", "attention"],
    "lns branch_output": ["--norm-scheme", "lns", "--lns-placement", "branch_output"],
    "pre_ln": ["--norm-scheme", "pre_ln"],
    "layerscale": ["--norm-scheme", "layerscale", "--layerscale-init", "0.5"],
    "skipinit": ["--norm-scheme", "skipinit"],
    "zero-centred": ["--apply-layernorm-1p"],
    "warmed up": ["--residual-warmup-steps", "2"],
    "sandwich_ln": ["--norm-scheme", "sandwich_ln", "--rotary-percent", "0.5", "--add-qkv-bias"],
    "sandwich_ln zero-centred": ["--norm-scheme", "sandwich_ln", "--apply-layernorm-1p"],
    "layer_rope peri": ["--norm-scheme", "layer_rope", "--layer-rope-peri"],
}
# A high rate, so that the gammas and learned scales leave their start values.
TRAIN = ["--lr", "2e-2", "--min-lr", "2e-2", "--lr-warmup-fraction", "0"]
# Logits below 1, where bf16 itself is finer than 1e-2.
SLOW = ["--lr", "2e-3", "--min-lr", "2e-3"]
RECIPE = ROOT / "recipes" / "debug.yaml"


def weights(folder) -> dict:
    """(name, layer) -> tensor of the weights of the checkpoint in ``folder``."""
    opened = Checkpoint(find_checkpoint(folder))
    parts = {name: part for name, part in opened.slices.items() if kind_of(name[0]) == WEIGHTS}
    return {name: opened.read(part, 0, part.shape[0]) for name, part in parts.items()}


@pytest.fixture(scope="module")
def train(tmp_path_factory, tiny):
    made = {}

    def trained(name, *more):
        if (name, *more) not in made:
            folder = tmp_path_factory.mktemp("trained")
            flags = [*tiny, *SHAPE, *TRAIN, *SCHEMES[name], *more, *PP2]
            succeed(2, [*flags, "--save", str(folder), "--save-interval", "8"])
            made[name, *more] = folder
        return made[name, *more]

    return trained


def ours(folder, name, layout=ONE, *more):
    return megatron_logits(folder, layout, tokens(257), *SHAPE, *SCHEMES[name], *more, recipe=RECIPE)[..., :257]


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.slow_except("lns")
def test_stock_transformers_computes_the_trained_model(train, tmp_path, name):
    folder = train(name)
    found = export_model(ExportJob(folder, tmp_path / "hf"))
    logits = ours(folder, name)
    theirs = transformers_logits(tmp_path / "hf", tokens(257))
    assert theirs.shape[-1] == 257 and theirs.abs().max() > 0.1
    assert (logits - theirs).abs().max() <= TOLERANCE
    in_memory = load_as_transformers(folder)
    with torch.no_grad():
        assert torch.equal(in_memory(tokens(257)).logits, theirs)
    said = json.loads((tmp_path / "hf" / "config.json").read_text())["megatron_cod"]
    assert said["norm_scheme"] == found.scheme.scheme and said["folded"] is True


@pytest.mark.slow
@pytest.mark.parametrize("layout", [TP2, PP2_LAYOUT], ids=["tp2", "pp2"])
def test_an_imported_lns_model_loads_at_other_layouts(train, tmp_path, layout):
    export_model(ExportJob(train("lns"), tmp_path / "hf"))
    # 257 rows do not divide over two ranks.
    import_model(ImportJob(tmp_path / "hf", tmp_path / "back", as_scheme="lns", padded_vocab=264))
    found = megatron_logits(tmp_path / "back", layout, tokens(257))[..., :257]
    assert (found - ours(train("lns"), "lns")).abs().max() <= TOLERANCE


@pytest.mark.parametrize("name", ["lns", "lns 0.7", "lns attention", "pre_ln", "sandwich_ln"])
@pytest.mark.slow
def test_the_round_trip_gives_the_same_checkpoint(train, tmp_path, name):
    folder = train(name)
    export_model(ExportJob(folder, tmp_path / "hf"))
    scheme = name.split()[0]
    import_model(ImportJob(tmp_path / "hf", tmp_path / "back", as_scheme=scheme))
    before, after = weights(folder), weights(tmp_path / "back")
    for key, value in before.items():
        value = value[:257] if "embedding" in key[0] or "output_layer" in key[0] else value
        assert torch.equal(after[key], value), key


def test_without_the_kept_originals_the_function_is_the_same_and_the_gammas_nearly(train, tmp_path):
    """Several gammas fold to one number: division finds one of them, and the originals are kept to find the right one."""
    export_model(ExportJob(train("lns"), tmp_path / "hf"))
    (tmp_path / "hf" / "megatron_cod" / "unfolded.safetensors").unlink()
    import_model(ImportJob(tmp_path / "hf", tmp_path / "back", as_scheme="lns"))
    export_model(ExportJob(tmp_path / "back", tmp_path / "again"))
    assert same_tensors(tensors(tmp_path / "hf"), tensors(tmp_path / "again"))
    before, after = weights(train("lns")), weights(tmp_path / "back")
    norms = [key for key in before if key[0].endswith("layer_norm_weight")]
    assert len(norms) == 8 and not all(torch.equal(before[key], after[key]) for key in norms)
    for key in norms:
        assert torch.allclose(before[key], after[key], rtol=2**-22, atol=0)


@pytest.mark.slow
def test_changed_weights_are_not_replaced_by_the_originals(train, tmp_path):
    """Someone trains the exported model on: the kept gammas no longer fold to what it holds."""
    from safetensors.torch import save_file

    export_model(ExportJob(train("lns"), tmp_path / "hf"))
    changed = tensors(tmp_path / "hf")
    name = "model.layers.2.input_layernorm.weight"
    changed[name] = changed[name] * 1.5
    save_file(changed, tmp_path / "hf" / "model.safetensors")
    found = import_model(ImportJob(tmp_path / "hf", tmp_path / "back", as_scheme="lns"))
    assert any("were changed since the export" in note for note in found.notes)
    logits = megatron_logits(tmp_path / "back", ONE, tokens(257))
    assert (logits - transformers_logits(tmp_path / "hf", tokens(257))).abs().max() <= TOLERANCE


@pytest.mark.slow
def test_bf16_export_is_within_rounding(train, tmp_path):
    folder = train("lns", "--bf16", *SLOW)
    export_model(ExportJob(folder, tmp_path / "hf"))
    assert {tensor.dtype for tensor in tensors(tmp_path / "hf").values()} == {torch.bfloat16}
    logits = ours(folder, "lns", ONE, "--bf16")
    theirs = transformers_logits(tmp_path / "hf", tokens(257), torch.bfloat16)
    # The same weights computed in fp32: each of the two rounds in its own places, and neither is nearer to the other.
    exact = transformers_logits(tmp_path / "hf", tokens(257))
    assert theirs.abs().max() > 0.1
    assert (logits - exact).abs().max() <= 1e-2
    assert (logits - exact).abs().mean() <= 1.5 * (theirs - exact).abs().mean()
    import_model(ImportJob(tmp_path / "hf", tmp_path / "back", as_scheme="lns"))
    before, after = weights(folder), weights(tmp_path / "back")
    for key, value in before.items():
        assert torch.equal(after[key], value[: after[key].shape[0]]) and after[key].dtype == value.dtype, key


@pytest.mark.slow
def test_fp32_exported_as_bf16(train, tmp_path):
    folder = train("lns", *SLOW)
    found = export_model(ExportJob(folder, tmp_path / "hf", dtype="bfloat16"))
    assert any("rounded from float32 to bfloat16" in note for note in found.notes)
    # Computed in fp32: what is left is the rounding of the weights. (In bf16 each activation's rounding comes on top.)
    difference = (ours(folder, "lns") - transformers_logits(tmp_path / "hf", tokens(257))).abs()
    assert 1e-5 < difference.max() <= 1e-2


@pytest.mark.slow
def test_a_release_as_pre_ln_computes_the_same(train, tmp_path):
    """A folded model goes on as pre_ln unless asked otherwise, and says so."""
    export_model(ExportJob(train("lns"), tmp_path / "hf"))
    found = import_model(ImportJob(tmp_path / "hf", tmp_path / "back"))
    assert found.scheme.scheme == "pre_ln" and any("--as-scheme lns" in note for note in found.notes)
    assert (megatron_logits(tmp_path / "back", ONE, tokens(257)) - ours(train("lns"), "lns")).abs().max() <= TOLERANCE


@pytest.mark.slow
def test_unfolded_weights_are_named_as_another_function(train, tmp_path):
    said: list[str] = []
    export_model(ExportJob(train("lns"), tmp_path / "hf", fold=False), said.append)
    assert any(line.startswith("WARNING: --no-fold") for line in said)
    assert (transformers_logits(tmp_path / "hf", tokens(257)) - ours(train("lns"), "lns")).abs().max() > 1e-2
    found = import_model(ImportJob(tmp_path / "hf", tmp_path / "back"))
    assert found.scheme.scheme == "lns"
    before, after = weights(train("lns")), weights(tmp_path / "back")
    assert all(torch.equal(after[key], value[: after[key].shape[0]]) for key, value in before.items())


def number_on_the_stage(self, part, layer):
    """The mutant: layers count from 1 on each of two stages."""
    return RIGHT(self, part, None if layer is None else (layer - 1) % 2 + 1)


def from_zero(self, part, layer):
    """The mutant: layers count from 0, the first one unscaled."""
    return RIGHT(self, part, None if layer is None else max(layer - 1, 1))


def never(self, part, layer):
    """The mutant: nothing is folded."""
    return 1.0


RIGHT = folding.Folding.factor


@pytest.mark.parametrize("mutant", [number_on_the_stage, from_zero, never])
@pytest.mark.slow_except("number_on_the_stage")
def test_detects_wrong_factor(train, tmp_path, monkeypatch, mutant):
    monkeypatch.setattr(folding.Folding, "factor", mutant)
    export_model(ExportJob(train("lns"), tmp_path / "hf"))
    assert (transformers_logits(tmp_path / "hf", tokens(257)) - ours(train("lns"), "lns")).abs().max() > 1e-3


@pytest.mark.parametrize("scheme", ["post_ln", "mix_ln", "deepnorm"])
@pytest.mark.slow_except("post_ln", "mix_ln")
def test_rejects_schemes_without_stock_architecture(tiny, tmp_path, scheme):
    folder = tmp_path / "run"
    flags = [*tiny, "--norm-scheme", scheme, "--train-iters", "1", "--eval-iters", "0", "--save", str(folder)]
    succeed(1, [*flags, "--save-interval", "1"])
    with pytest.raises(ValueError, match=f"{scheme} cannot be exported: .*no stock architecture"):
        export_model(ExportJob(folder, tmp_path / "hf"))
    assert not list(tmp_path.glob("hf*"))


def test_a_warm_up_in_progress_is_refused(tiny, tmp_path):
    flags = [*tiny, "--residual-warmup-steps", "4", "--save", str(tmp_path / "run"), "--save-interval", "4"]
    succeed(1, flags)
    with pytest.raises(ValueError, match="in the residual warm-up"):
        export_model(ExportJob(tmp_path / "run", tmp_path / "hf"))


@pytest.mark.slow
def test_shards_hold_the_same_tensors(train, tmp_path):
    export_model(ExportJob(train("lns"), tmp_path / "one"))
    export_model(ExportJob(train("lns"), tmp_path / "many", shard_bytes=20_000))
    assert len(list((tmp_path / "many").glob("model-*.safetensors"))) > 3
    assert same_tensors(tensors(tmp_path / "one"), tensors(tmp_path / "many"))
    logits = [transformers_logits(tmp_path / name, tokens(257)) for name in ("one", "many")]
    assert torch.equal(*logits)
