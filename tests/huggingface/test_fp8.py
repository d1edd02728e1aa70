"""Weights in fp8 with a scale for each block: the import is that of a dequantised copy, and every fault is one line."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from megatron_cod.checkpoint.tensors import Checkpoint
from megatron_cod.huggingface import weights_reader
from megatron_cod.huggingface.fp8 import dequantised
from megatron_cod.huggingface.importing import ImportJob, import_model
from megatron_cod.huggingface.verification import probe_tokens
from tests.huggingface.megatron import ONE, megatron_logits
from tests.huggingface.models import make_model, tensors, transformers_logits

BLOCKS = (20, 12)
"""No size of the model is a multiple of 20, and of 12 only some."""
CONFIG = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": list(BLOCKS)}
WEIGHT = "model.layers.1.mlp.experts.3.down_proj.weight"


def quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix in fp8, and its scales: the largest element of a block becomes 448."""
    (rows, columns), (r, c) = weight.shape, BLOCKS
    high, wide = math.ceil(rows / r), math.ceil(columns / c)
    padded = torch.zeros(high * r, wide * c)
    padded[:rows, :columns] = weight.float()
    scales = padded.reshape(high, r, wide, c).abs().amax(dim=(1, 3)) / 448
    whole = spread(scales, weight)
    return (weight.float() / whole).to(torch.float8_e4m3fn), scales


def spread(scales: Tensor, weight: Tensor) -> Tensor:
    """The scale of each element."""
    rows = torch.arange(weight.shape[0]) // BLOCKS[0]
    columns = torch.arange(weight.shape[1]) // BLOCKS[1]
    return scales[rows][:, columns]


def write(folder, held, config):
    folder.mkdir()
    names = sorted(held)
    files = {name: f"model-{1 + (name.endswith('_scale_inv'))}.safetensors" for name in names}  # scales lie elsewhere
    for file in sorted(set(files.values())):
        save_file({name: held[name] for name in names if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A model in fp8, and its dequantised copy."""
    folder = tmp_path_factory.mktemp("fp8")
    make_model("deepseek v3", folder / "made", torch.bfloat16)
    config = json.loads((folder / "made" / "config.json").read_text())
    small, plain = {}, {}
    for name, tensor in tensors(folder / "made").items():
        small[name] = plain[name] = tensor
        if name.endswith(("proj.weight", "proj_with_mqa.weight")):
            small[name], small[f"{name}_scale_inv"] = found, scales = quantised(tensor)
            plain[name] = found.float() * spread(scales, found)
    assert WEIGHT in small and small[WEIGHT].shape == (32, 24) and small[f"{WEIGHT}_scale_inv"].shape == (2, 2)
    write(folder / "fp8", small, {**config, "quantization_config": CONFIG})
    write(folder / "plain", plain, config)
    return folder


def same_checkpoints(one, other):
    """Equal names, types and bits of every tensor."""
    held = [Checkpoint(folder / "release") for folder in (one, other)]
    if held[0].slices != held[1].slices:
        return False
    rows = [(part, part.shape[0] if part.shape else 1) for part in held[0].slices.values()]
    return all(torch.equal(*(each.read(part, 0, count) for each in held)) for part, count in rows)


@pytest.mark.slow
def test_is_the_import_of_a_dequantised_copy(pair, tmp_path):
    said, computed = [], []

    def megatron(folder, ids):
        computed.append(megatron_logits(folder, ONE, ids))
        return computed[-1]

    found = import_model(ImportJob(pair / "fp8", tmp_path / "fp8"), said.append, megatron)
    import_model(ImportJob(pair / "plain", tmp_path / "plain"))
    assert same_checkpoints(tmp_path / "fp8", tmp_path / "plain")
    assert any("weights in fp8" in note for note in found.notes)
    assert said[-1].startswith("verified: transformers and Megatron")
    assert (computed[0] - transformers_logits(pair / "plain", probe_tokens(128, 128))).abs().max() <= 1e-5


def transposed(weight, scales, blocks):
    return dequantised(weight, scales.t().reshape(scales.shape), blocks)


def divided(weight, scales, blocks):
    return dequantised(weight, 1 / scales, blocks)


def of_whole_blocks(weight, scales, blocks):
    """Blocks that divide a tensor evenly, as transformers finds them from the shape of the scales."""
    return dequantised(weight, scales, tuple(-(-s // n) for s, n in zip(weight.shape, scales.shape, strict=True)))


@pytest.mark.slow_except("divided", "transposed")
@pytest.mark.parametrize("mutant", [transposed, divided, of_whole_blocks])
def test_detects_another_use_of_the_scales(pair, tmp_path, monkeypatch, mutant):
    monkeypatch.setattr(weights_reader, "dequantised", mutant)
    import_model(ImportJob(pair / "fp8", tmp_path / "fp8"))
    import_model(ImportJob(pair / "plain", tmp_path / "plain"))
    assert not same_checkpoints(tmp_path / "fp8", tmp_path / "plain")


def refused(pair, folder, said, change=lambda held: None, **config):
    held = tensors(pair / "fp8")
    change(held)
    whole = json.loads((pair / "fp8" / "config.json").read_text())
    model = write(folder / "hf", held, {**whole, "quantization_config": {**CONFIG, **config}})
    with pytest.raises(ValueError, match=said) as caught:
        import_model(ImportJob(model, folder / "out"))
    assert "\n" not in str(caught.value)
    assert not list(folder.glob("out*"))


SCALE = f"{WEIGHT}_scale_inv"
TENSORS = {
    "no scale": (lambda held: held.pop(SCALE), rf"without scales \(NAME_scale_inv\): {WEIGHT}$"),
    "a scale of another shape": (
        lambda held: held.update({SCALE: torch.ones(2, 3)}),
        rf"{SCALE} is \[2, 3\]; {WEIGHT} of \[32, 24\] has \[2, 2\] blocks of 20 x 12",
    ),
    "one scale for all": (lambda held: held.update({SCALE: torch.ones(())}), rf"{SCALE} is \[\]; "),
    "a scale in bytes": (
        lambda held: held.update({SCALE: torch.ones(2, 2, dtype=torch.uint8)}),
        f"{SCALE} does not hold plain floating-point numbers",
    ),
    "a scale of no weight": (
        lambda held: held.update({"model.norm.weight_scale_inv": torch.ones(1)}),
        "not known in deepseek_v3: model.norm.weight_scale_inv",
    ),
    "a vector in fp8": (
        lambda held: held.update(
            {
                "model.norm.weight": torch.ones(32).to(torch.float8_e4m3fn),
                "model.norm.weight_scale_inv": torch.ones(2),
            }
        ),
        r"model.norm.weight is \[32\] in fp8; only matrices have blocks",
    ),
    "another fp8": (
        lambda held: held.update({WEIGHT: held[WEIGHT].to(torch.float8_e5m2)}),
        rf"not known in deepseek_v3: {SCALE}|{WEIGHT} does not hold plain",
    ),
}


@pytest.mark.parametrize("name", TENSORS)
def test_rejects_scales_that_do_not_fit(pair, tmp_path, name):
    change, said = TENSORS[name]
    refused(pair, tmp_path, said, change)


CONFIGS = {
    "no block size": ({"weight_block_size": None}, "weight_block_size None"),
    "a block of one side": ({"weight_block_size": [128]}, r"weight_block_size \[128\]"),
    "a block of nothing": ({"weight_block_size": [128, 0]}, r"weight_block_size \[128, 0\]"),
    "a block of a part": ({"weight_block_size": [1.5, 2]}, r"weight_block_size \[1.5, 2\]"),
    "another method": ({"quant_method": "gptq"}, "quant_method 'gptq': only 'fp8' in blocks is read"),
    "another format": ({"fmt": "e5m2"}, "fmt 'e5m2'"),
    "experts in fp4": ({"expert_dtype": "fp4"}, "expert_dtype 'fp4'"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_rejects_other_quantisation_by_name(pair, tmp_path, name):
    changes, said = CONFIGS[name]
    refused(pair, tmp_path, said, **changes)


def test_fp8_without_its_config_is_no_plain_tensor(pair, tmp_path):
    config = json.loads((pair / "plain" / "config.json").read_text())
    held = {name: tensor for name, tensor in tensors(pair / "fp8").items() if not name.endswith("_scale_inv")}
    with pytest.raises(ValueError, match="does not hold plain floating-point numbers"):
        import_model(ImportJob(write(tmp_path / "hf", held, config), tmp_path / "out"))
    assert not (tmp_path / "out").exists()
