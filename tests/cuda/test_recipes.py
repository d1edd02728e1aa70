"""Every recipe starts on a GPU as it is, at full size: the device computes small tensors only, the others cost nothing."""

import json
import os

import pytest
import yaml

from megatron_cod.training.flags.recipe_files import load_recipe
from tests.conftest import ROOT
from tests.cuda.runs import DEBUG, train

RECIPES = sorted(path.name for path in (ROOT / "recipes").glob("*.yaml") if path.name != "llama_base.yaml")
"""llama_base.yaml is what the others build on."""
FAST = ("debug.yaml",)
SFT = [name for name in RECIPES if name.startswith("sft_")]
ODD = "llama_1b.yaml"
BYTES = 257
CHATS = [
    {"messages": [{"role": "user", "content": str(number)}, {"role": "assistant", "content": "b"}]}
    for number in range(2000)
]


def _large_device() -> None:
    os.environ |= {"FAKECUDA_GIB": "400", "FAKECUDA_LIGHT": "1", "TORCHDYNAMO_DISABLE": "1"}
    import torch._dynamo

    torch._dynamo.config.disable = True  # for a forked process; compiling takes a minute a recipe


def flags_of(name: str, tokens: int | None = None) -> list[str]:
    """Steps of a micro-batch; the model is the recipe's. tokens: of the tokenizer, else as many as the model has."""
    recipe = load_recipe(ROOT / "recipes" / name)
    vocabulary = recipe.get("padded-vocab-size") or recipe.get("vocab-size") or 4096
    data = [key for key in ("data", "tokenizer-model") if key in recipe]
    flags = ["--recipe", str(ROOT / "recipes" / name), *(["--unset", *data] if data else [])]
    flags += ["--global-batch-size", str(recipe["micro-batch-size"]), "--on-nonfinite", "ignore"]
    flags += ["--log-interval", "1", "--tokenizer-type", "NullTokenizer", "--vocab-size", str(tokens or vocabulary - 1)]
    return flags


def start(folder, *flags, entry="pretrain"):
    return train(1, folder, *flags, entry=entry, mode="small", before=_large_device, timeout=500).succeeded()


def pretrained(name: str, folder) -> str:
    """A checkpoint of the recipe that a fine-tuning recipe builds on."""
    base = yaml.safe_load((ROOT / "recipes" / name).read_text())["base"]
    save = ["--save", str(folder / "saved"), "--save-interval", "1", "--no-save-optim", "--exit-interval", "1"]
    start(folder, *flags_of(base, BYTES), "--mock-data", "--eval-iters", "0", *save)
    return str(folder / "saved")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in FAST else [pytest.mark.slow]) for n in RECIPES])
def test_every_recipe_starts(name, tmp_path):
    flags, entry = ["--exit-interval", "2"], "pretrain"
    if name in SFT:
        chats = tmp_path / "chats.jsonl"
        chats.write_text("\n".join(json.dumps(one) for one in CHATS))
        flags += ["--sft-data-path", str(chats), "--load", pretrained(name, tmp_path / "base")]
        entry = "sft"
    else:
        flags += ["--mock-data", "--eval-iters", "0"]
    run = start(tmp_path / "run", *flags_of(name, BYTES if entry == "sft" else None), *flags, entry=entry)
    assert run.losses, run.console[-3000:]


def test_the_paper_width_of_the_1b_is_odd():
    assert load_recipe(ROOT / "recipes" / ODD)["ffn-hidden-size"] == 5461


@pytest.mark.slow
@pytest.mark.parametrize("tp", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_odd_widths_train_and_are_saved_as_they_are(tp, tmp_path):
    """255 a rank; at TP 2 Megatron would halve a tensor of 255 too."""
    flags = ["--ffn-hidden-size", str(255 * tp), "--tensor-model-parallel-size", str(tp), "--train-iters", "2"]
    run = train(tp, tmp_path / "emulation", *DEBUG, *flags, "--save", str(tmp_path / "run")).succeeded()
    assert len(run.losses) == 2
    assert yaml.safe_load((tmp_path / "run" / "resolved_args.yaml").read_text())["ffn-hidden-size"] == 255 * tp
    from megatron_cod.checkpoint import selection

    assert selection.saved_state(tmp_path / "run" / "iter_0000002")["args"].ffn_hidden_size == 255 * tp
