"""Layers of multi-token prediction of DeepSeek V3, imported and exported: Megatron's compute what transformers' do."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from megatron_cod.analysis.metrics import TRAIN_LOSS, read_metrics
from megatron_cod.errors import UserError
from megatron_cod.huggingface.checkpoint import MegatronCheckpoint
from megatron_cod.huggingface.export import ExportJob, export_model, exported
from megatron_cod.huggingface.families.mapping_rows import Unit, units
from megatron_cod.huggingface.families.table import architecture_of, get_family
from megatron_cod.huggingface.folding import Folding
from megatron_cod.huggingface.importing import ImportJob, import_model
from megatron_cod.huggingface.weights_reader import Source
from tests.distributed.launch import run_ranks
from tests.distributed.runs import succeed
from tests.huggingface import models
from tests.huggingface.models import make_model, same_tensors, tensors, tokens

LAYERS, PREDICTED = 4, 2
V3 = {**models.LATENT, "q_lora_rank": 16, "n_group": 4, "topk_group": 1, "num_nextn_predict_layers": PREDICTED}

MODEL = [
    *("--num-layers", "4", "--hidden-size", "32", "--ffn-hidden-size", "64", "--max-position-embeddings", "32"),
    *("--multi-latent-attention", "--q-lora-rank", "16", "--kv-lora-rank", "16", "--qk-head-dim", "8"),
    *("--qk-pos-emb-head-dim", "8", "--v-head-dim", "12", "--qk-layernorm", "--rope-type", "rope"),
    *("--num-experts", "4", "--moe-router-topk", "2", "--moe-ffn-hidden-size", "48", "--moe-router-dtype", "fp32"),
    *("--moe-router-load-balancing-type", "none", "--moe-token-dispatcher-type", "alltoall"),
    *("--moe-router-score-function", "sigmoid", "--moe-router-enable-expert-bias"),
    *("--moe-router-topk-scaling-factor", "2.5", "--moe-shared-expert-intermediate-size", "48"),
    *("--moe-layer-freq", "([0]*1+[1]*3)", "--mtp-num-layers", str(PREDICTED)),
]


def make(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A model with two prediction layers, as published ones have them: blocks of a longer model, and their own tensors."""
    models.MODELS["mtp"] = ("DeepseekV3ForCausalLM", {**V3, "num_hidden_layers": LAYERS + PREDICTED})
    make_model("mtp", folder, dtype)
    del models.MODELS["mtp"]
    held = tensors(folder)
    hidden = held["model.norm.weight"].numel()
    for layer in range(LAYERS, LAYERS + PREDICTED):
        start = f"model.layers.{layer}."
        for name in ("enorm", "hnorm", "shared_head.norm"):
            held[f"{start}{name}.weight"] = (1 + 0.3 * torch.randn(hidden)).to(dtype)
        held[f"{start}eh_proj.weight"] = (0.15 * torch.randn(hidden, 2 * hidden)).to(dtype)
        held[f"{start}embed_tokens.weight"] = held["model.embed_tokens.weight"].clone()
        held[f"{start}shared_head.head.weight"] = held["lm_head.weight"].clone()
    save_file(held, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": LAYERS}))
    return folder


def theirs(folder: Path, ids: Tensor) -> list[Tensor]:
    """[b, s, h] of each prediction layer, by transformers' own, which reads them under the number 61 alone."""
    from transformers import AutoModelForCausalLM
    from transformers.modeling_layers import MtpModel

    main = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    numbers = "|".join(str(LAYERS + number) for number in range(PREDICTED))
    main._keys_to_ignore_on_load_unexpected = [rf"model\.layers\.(?:{numbers})\..*"]
    predicting = MtpModel.from_pretrained(main).eval()
    found = []
    with torch.no_grad():
        hidden = main.model(ids).last_hidden_state
        positions = torch.arange(ids.shape[1])[None]
        for number in range(PREDICTED):
            shifted = torch.cat([ids[:, number + 1 :], torch.zeros_like(ids[:, : number + 1])], 1)
            hidden = predicting.forward_layer(number, hidden, positions, None, shifted)
            found.append(hidden)
    return found


def _worker(_rank: int, folder: str, ids: Tensor) -> list[Tensor]:
    """[b, s, h] behind each prediction layer of Megatron's."""
    from megatron_cod.training.start.loading import load_megatron

    found: list[Tensor] = []
    model, _ = load_megatron(Path(folder), None, ids.shape[1], in_fp32=True)
    for layer in model.mtp.layers:
        layer.final_layernorm.register_forward_hook(lambda _m, _i, out: found.append(out.transpose(0, 1).clone()))
    with torch.no_grad():
        model(ids, torch.arange(ids.shape[1]).expand(ids.shape), None)
    return found


def ours(folder: Path, ids: Tensor) -> list[Tensor]:
    return run_ranks(1, _worker, str(folder), ids)[0]


def apart(one: list[Tensor], other: list[Tensor]) -> float:
    """Where both have read a next token; the last positions have none."""
    pairs = zip(one, other, strict=True)
    return max(float((a - b)[:, : -1 - number].abs().max()) for number, (a, b) in enumerate(pairs))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make(tmp_path_factory.mktemp("mtp") / "hf")


@pytest.mark.slow_except("lns")
@pytest.mark.parametrize("scheme", [None, "lns"])
def test_megatron_predicts_what_transformers_does(source, tmp_path, scheme):
    found = import_model(ImportJob(source, tmp_path / "out", as_scheme=scheme))
    assert found.arch.predicted == PREDICTED and not any("omitted" in note for note in found.notes)
    assert yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())["mtp-num-layers"] == PREDICTED
    expected = theirs(source, tokens())
    assert expected[0].abs().max() > 0.1 and apart(expected[:1], expected[1:]) > 0.1
    assert apart(ours(tmp_path / "out", tokens()), expected) <= 1e-5


@pytest.mark.slow
def test_every_bit_comes_back(source, tmp_path):
    import_model(ImportJob(source, tmp_path / "out"))
    said: list[str] = []
    export_model(ExportJob(tmp_path / "out", tmp_path / "back"), said.append)
    assert same_tensors(tensors(tmp_path / "back"), tensors(source))
    assert json.loads((tmp_path / "back" / "config.json").read_text())["num_nextn_predict_layers"] == PREDICTED
    assert any(line.startswith("verified: it loads whole") for line in said)


@pytest.mark.slow
def test_every_bit_comes_back_from_lns(tmp_path):
    source = make(tmp_path / "hf", torch.bfloat16)
    import_model(ImportJob(source, tmp_path / "lns", as_scheme="lns"))
    export_model(ExportJob(tmp_path / "lns", tmp_path / "back", dtype="bfloat16"))
    held, back = tensors(source), tensors(tmp_path / "back")
    bias = [name for name in held if name.endswith("e_score_correction_bias")]
    assert same_tensors({**back, **{name: back[name].to(held[name].dtype) for name in bias}}, held)
    # The factor of layer L + k, from 1, was divided out: bf16 has no other gamma with this product.
    gamma = MegatronCheckpoint(tmp_path / "lns" / "release").read(norm_of(LAYERS + 1))
    assert (
        gamma / held[f"model.layers.{LAYERS}.input_layernorm.weight"].float() - (LAYERS + 1) ** 0.5
    ).abs().max() < 1e-4


@pytest.mark.parametrize(("step", "predicted"), [(59, 0), (60, PREDICTED)])
def test_layers_in_the_residual_warmup_are_omitted(source, tmp_path, monkeypatch, step, predicted):
    import_model(ImportJob(source, tmp_path / "out"))
    right = MegatronCheckpoint.__init__

    def warmed_up(self, path):
        right(self, path)
        self.args.residual_warmup_steps, self.iteration = 10, step

    monkeypatch.setattr(MegatronCheckpoint, "__init__", warmed_up)
    found = exported(tmp_path / "out" / "release")
    assert found.arch.predicted == predicted == found.config["num_nextn_predict_layers"]
    assert any("omitted" in note for note in found.notes) == (not predicted)
    assert any("residual warm-up" in note for note in found.notes) == (not predicted)


def norm_of(layer: int) -> Unit:
    arch, _ = architecture_of({**models.BASE, **V3, "model_type": "deepseek_v3"})
    found = units(get_family(arch.family).rows, arch)
    return next(unit for unit in found if unit.names == (f"model.layers.{layer - 1}.input_layernorm.weight",))


def numbered_anew(right):
    def factor(self, part, layer):
        return right(self, part, layer if layer is None or layer <= LAYERS else layer - LAYERS)

    return factor


def halves_swapped(right):
    def to_megatron(self, *given):
        found = right(self, *given)
        return found.roll(32, 1) if found.shape == (32, 64) else found

    return to_megatron


@pytest.mark.slow
@pytest.mark.parametrize("name", ["factor", "halves"])
def test_detects_wrong_tables(source, tmp_path, monkeypatch, name):
    if name == "factor":
        monkeypatch.setattr(Folding, "factor", numbered_anew(Folding.factor))
    else:
        monkeypatch.setattr(Source, "read", halves_swapped(Source.read))
    import_model(ImportJob(source, tmp_path / "out", as_scheme="lns"))
    assert apart(ours(tmp_path / "out", tokens()), theirs(source, tokens())) > 1e-3


PP2 = ["--pipeline-model-parallel-size", "2"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "more"), [(2, PP2), (1, ["--lns-placement", "branch_output"])], ids=["pp2", "branch_output"]
)
def test_trained_layers_are_exported_as_lns(tiny, tmp_path, world, more):
    rate = ["--lr", "1e-2", "--min-lr", "1e-2", "--global-batch-size", "8", "--ckpt-format", "torch_dist"]
    save = ["--save", str(tmp_path / "run"), "--save-interval", "8"]
    succeed(world, [*tiny, *MODEL, *rate, *more, *save])
    export_model(ExportJob(tmp_path / "run", tmp_path / "hf"))
    expected = theirs(tmp_path / "hf", tokens(257))
    assert apart(ours(tmp_path / "run", tokens(257)), expected) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "more"),
    [
        (2, PP2),
        (2, ["--tensor-model-parallel-size", "2", "--sequence-parallel"]),
        (2, ["--expert-model-parallel-size", "2"]),
    ],
    ids=["pp2", "tp2", "ep2"],
)
def test_imported_layers_train_alike_at_every_layout(source, tmp_path, world, more):
    import_model(ImportJob(source, tmp_path / "lns", as_scheme="lns"))
    flags = ["--recipe", str(tmp_path / "lns" / "recipe.yaml"), "--load", str(tmp_path / "lns"), "--mock-data"]
    flags += ["--seq-length", "32", "--train-iters", "3", "--global-batch-size", "4", "--micro-batch-size", "1"]
    flags += ["--lr", "1e-3", "--min-lr", "1e-3", "--log-interval", "1", "--eval-iters", "0", "--finetune"]
    succeed(1, [*flags, "--save", str(tmp_path / "one")])
    succeed(world, [*flags, *more, "--save", str(tmp_path / "split")])
    one, split = (read_metrics(tmp_path / run / "metrics.jsonl").scalars for run in ("one", "split"))
    for name in (TRAIN_LOSS, *(f"mtp_{number} loss" for number in range(1, PREDICTED + 1))):
        assert len(one[name]) == 3
        assert split[name] == pytest.approx(one[name], abs=1e-5)


def refused(source, folder, said, change):
    held = tensors(source)
    change(held)
    model = folder / "hf"
    model.mkdir()
    save_file(held, model / "model.safetensors", {"format": "pt"})
    (model / "config.json").write_text((source / "config.json").read_text())
    with pytest.raises(UserError, match=said):
        import_model(ImportJob(model, folder / "out"))
    assert not (folder / "out").exists()
    return model


def test_copies_that_differ_are_refused_or_omitted_by_request(source, tmp_path):
    name = f"model.layers.{LAYERS}.shared_head.head.weight"
    said = f"{name} differs from lm_head.weight, which .* --no-mtp"
    model = refused(source, tmp_path, said, lambda held: held[name].add_(1))
    found = import_model(ImportJob(model, tmp_path / "out", prediction=False))
    assert found.arch.predicted == 0
    assert any("multi-token-prediction layers" in note and "omitted" in note for note in found.notes)
    assert "mtp-num-layers" not in yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())


def test_copies_may_be_missing_other_tensors_not(source, tmp_path):
    def change(held):
        for name in [name for name in held if name.endswith(("4.embed_tokens.weight", "4.shared_head.head.weight"))]:
            del held[name]
        del held["model.layers.5.enorm.weight"]

    refused(source, tmp_path, r"missing: model.layers.5.enorm.weight$", change)


def test_a_directory_without_them_has_none(tmp_path):
    """transformers' own default is one layer, which no directory that it writes has."""
    make_model("deepseek v3", tmp_path / "hf")
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["num_nextn_predict_layers"] == 1
    found = import_model(ImportJob(tmp_path / "hf", tmp_path / "out", dry_run=True))
    assert found.arch.predicted == 0
