"""What servers need of an exported directory: they choose a class by config.json and read each *.safetensors beside it."""

import json

import pytest
from safetensors import safe_open

from megatron_cod.huggingface.export import ExportJob, export_model
from megatron_cod.huggingface.families.table import FAMILIES
from megatron_cod.huggingface.importing import ImportJob, import_model
from tests.huggingface.models import make_model


@pytest.mark.slow_except("5000000000")
@pytest.mark.parametrize("shard_bytes", [20_000, 5_000_000_000])
def test_the_directory_holds_one_stock_model_and_no_other_weights(tmp_path, shard_bytes):
    """LNS from fp32 keeps the original gammas too, in a folder below."""
    import_model(ImportJob(make_model("llama", tmp_path / "hf"), tmp_path / "lns", as_scheme="lns", verify=False))
    export_model(ExportJob(tmp_path / "lns", tmp_path / "out", shard_bytes=shard_bytes, verify=False))
    out = tmp_path / "out"
    assert (out / "megatron_cod" / "unfolded.safetensors").is_file()
    held: list[str] = []
    for path in out.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            held += file.keys()
    with safe_open(tmp_path / "hf" / "model.safetensors", framework="pt") as file:
        assert sorted(held) == sorted(file.keys())
    index = out / "model.safetensors.index.json"
    assert index.is_file() == (shard_bytes == 20_000)
    if index.is_file():
        assert {path.name for path in out.glob("*.safetensors")} == set(
            json.loads(index.read_text())["weight_map"].values()
        )
    assert not [path for pattern in ("*.bin", "*.pt", "*.pth", "consolidated*") for path in out.glob(pattern)]
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == [FAMILIES["llama"].model_class] and "auto_map" not in config
