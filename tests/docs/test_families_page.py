"""The example of docs/families.md: registered from outside, imported, Megatron's logits, exported, the same bits."""

import json
import os
import re
import subprocess
import sys

import pytest

from megatron_cod.errors import UserError
from megatron_cod.huggingface.export import ExportJob, export_model
from megatron_cod.huggingface.families import family, table
from megatron_cod.huggingface.families.table import FAMILIES, register_family
from megatron_cod.huggingface.importing import ImportJob, import_model
from megatron_cod.schemes.table import import_modules
from tests.conftest import ROOT
from tests.huggingface.megatron import TP2, megatron_logits
from tests.huggingface.models import MODELS, make_model, same_tensors, tensors, tokens, transformers_logits

PAGE = ROOT / "docs" / "families.md"
TINY = {"head_dim": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The folder of the page's module, and a tiny model of its family."""
    [text] = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "my_family.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(MODELS, "seed_oss", ("SeedOssForCausalLM", TINY))
    make_model("seed_oss", tmp_path / "hf")
    yield tmp_path
    FAMILIES.pop("seed_oss", None)
    sys.modules.pop("my_family", None)


def test_the_example_converts_both_ways(example):
    with pytest.raises(UserError, match="unknown architecture 'seed_oss'"):
        import_model(ImportJob(example / "hf", example / "none"))
    import_modules(["my_family"])
    import_model(ImportJob(example / "hf", example / "megatron"))
    theirs = transformers_logits(example / "hf", tokens())
    assert (megatron_logits(example / "megatron", TP2, tokens()) - theirs).abs().max() <= 1e-5
    export_model(ExportJob(example / "megatron", example / "back"))
    assert same_tensors(tensors(example / "hf"), tensors(example / "back"))
    assert json.loads((example / "back" / "config.json").read_text())["model_type"] == "seed_oss"


@pytest.mark.parametrize("changes", [{"attention_out_bias": True}, {"mlp_bias": True}, {"attention_bias": False}])
def test_the_example_refuses_what_it_does_not_compute(example, changes):
    import_modules(["my_family"])
    path = example / "hf" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    [name] = changes
    with pytest.raises(UserError, match=f"config.json has {name} {changes[name]}"):
        import_model(ImportJob(example / "hf", example / "megatron"))


@pytest.mark.slow
def test_the_commands_of_the_page_run(example):
    environment = {**os.environ, "PYTHONPATH": f"{example}:{ROOT}"}
    for text in re.findall(r"^python tools/(convert_hf\.py .*)$", PAGE.read_text(), re.MULTILINE):
        words = text.replace("Seed-OSS-36B-Base", str(example / "hf")).replace("runs/seed", str(example / "runs"))
        words = words.replace("hf/seed", str(example / "out"))
        command = [sys.executable, f"tools/{words.split()[0]}", *words.split()[1:]]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert json.loads((example / "out" / "config.json").read_text())["model_type"] == "seed_oss"


def test_rejects_a_name_that_is_taken():
    with pytest.raises(UserError, match="'llama' is registered already"):
        register_family(FAMILIES["llama"])


def test_the_page_names_every_field():
    named = set(re.findall(r"`(\w+)`", PAGE.read_text()))
    fields = set(family.Family.__dataclass_fields__) - {"name", "model_class"}
    assert fields <= named, fields - named
    assert all(hasattr(table, name) for name in ("config_of", "register_family"))
